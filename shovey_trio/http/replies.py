"""The one response to a request, on its way out."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import h11

from shovey_trio.http.messages import Response, error_response
from shovey_trio.http.plain_head import response_head

if TYPE_CHECKING:
    from shovey_trio.http.connection import HttpConnection

_REASONS: Final = {status.value: status.phrase.encode() for status in HTTPStatus}
_WITHOUT_BODY: Final = frozenset({204, 304})


class ConnectionCut(Exception):
    """The connection is of no use any more: the client is gone, or does not read."""


class HttpReply:
    """``messages.Reply`` of the request that a connection is at."""

    def __init__(self, connection: HttpConnection) -> None:
        self._connection = connection
        self.begun = False
        self.bodiless = False
        self.close_after = False
        # Of a body sent in pieces, and not by h11: whether its length was left open, and what is missing of it if not.
        self._chunked = False
        self._missing = 0

    async def send(self, response: Response) -> None:
        headers = {"Content-Type": response.content_type} if response.body else {}
        headers |= response.headers
        headers["Content-Length"] = str(len(response.body))
        fields = self._fields(headers)
        if self._connection.is_plain:
            head = response_head(response.status, _REASONS.get(response.status, b""), fields)
            await self._connection.send_bytes(head if self.bodiless else head + response.body)
        else:
            body = [h11.Data(data=response.body)] if self._has_body(response.body) else []
            await self._connection.send(_h11_head(response.status, fields), *body)

    async def begin(self, status: int, headers: Mapping[str, str]) -> None:
        fields = self._fields(headers)
        if not self._connection.is_plain:
            await self._connection.send(_h11_head(status, fields))
            return
        declared = next((value for name, value in headers.items() if name.lower() == "content-length"), None)
        if declared is not None:
            self._missing = int(declared)
        elif status not in _WITHOUT_BODY:
            self._chunked = True
            fields["Transfer-Encoding"] = "chunked"
        await self._connection.send_bytes(response_head(status, _REASONS.get(status, b""), fields))

    async def write(self, data: bytes) -> None:
        if not self._has_body(data):
            return
        if not self._connection.is_plain:
            await self._connection.send(h11.Data(data=data))
        elif self._chunked:
            await self._connection.send_bytes(b"%x\r\n%b\r\n" % (len(data), data))
        elif len(data) > self._missing:
            raise RuntimeError("a response is longer than it was declared")
        else:
            self._missing -= len(data)
            await self._connection.send_bytes(data)

    async def finish(self) -> None:
        """Ends the response; a handler that sent none is a bug of ours and answered as one."""
        if not self.begun:
            await self.send(error_response(500, "nothing was answered"))
        if not self._connection.is_plain:
            await self._connection.send(h11.EndOfMessage())
        elif self.bodiless:
            pass
        elif self._chunked:
            await self._connection.send_bytes(b"0\r\n\r\n")
        elif self._missing:
            raise RuntimeError("a response is shorter than it was declared")

    async def hold(self, wait: Callable[[], Awaitable[None]]) -> None:
        await self._connection.wait_while_connected(wait)

    def _fields(self, headers: Mapping[str, str]) -> dict[str, str]:
        if self.begun:
            raise RuntimeError("a handler sends one response")
        self.begun = True
        fields = {"Date": _date(int(time.time())), **headers}
        if self.close_after:
            fields["Connection"] = "close"
        return fields

    def _has_body(self, data: bytes) -> bool:
        return bool(data) and not self.bodiless


def _h11_head(status: int, fields: Mapping[str, str]) -> h11.Response:
    return h11.Response(status_code=status, headers=list(fields.items()), reason=_REASONS.get(status, b""))


@lru_cache(maxsize=2)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)
