"""How a response is put on the wire: by h11, or in one pass for requests whose head was read in one pass."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final, Protocol

import h11

from shovey_trio.http.plain_head import response_head

_REASONS: Final = {status.value: status.phrase.encode() for status in HTTPStatus}
_WITHOUT_BODY: Final = frozenset({204, 304})


class Framing(Protocol):
    """One response as bytes: its head, pieces of its body, its end. A response to HEAD has no body on the wire."""

    def head(self, status: int, fields: Mapping[str, str]) -> bytes: ...

    def data(self, data: bytes) -> bytes:
        """A piece of the body.

        Raises:
            RuntimeError, h11.LocalProtocolError: it is longer than the head has declared.
        """
        ...

    def end(self) -> bytes:
        """What follows the body.

        Raises:
            RuntimeError, h11.LocalProtocolError: it is shorter than the head has declared.
        """
        ...


class PlainFraming:
    """With a Content-Length, or else chunked."""

    def __init__(self, *, bodiless: bool) -> None:
        self._bodiless = bodiless
        self._chunked = False
        self._missing = 0

    def head(self, status: int, fields: Mapping[str, str]) -> bytes:
        declared = next((value for name, value in fields.items() if name == "Content-Length"), None)
        if declared is not None:
            self._missing = int(declared)
        elif status not in _WITHOUT_BODY:
            self._chunked = True
            fields = {**fields, "Transfer-Encoding": "chunked"}
        return response_head(status, _REASONS.get(status, b""), fields)

    def data(self, data: bytes) -> bytes:
        if self._bodiless or not data:
            return b""
        if self._chunked:
            return b"%x\r\n%b\r\n" % (len(data), data)
        if len(data) > self._missing:
            raise RuntimeError("a response is longer than it was declared")
        self._missing -= len(data)
        return data

    def end(self) -> bytes:
        if self._bodiless:
            return b""
        if self._missing:
            raise RuntimeError("a response is shorter than it was declared")
        return b"0\r\n\r\n" if self._chunked else b""


class H11Framing:
    """As h11 frames it, whatever the client's version of HTTP."""

    def __init__(self, http: h11.Connection, *, bodiless: bool) -> None:
        self._http = http
        self._bodiless = bodiless

    def head(self, status: int, fields: Mapping[str, str]) -> bytes:
        reason = _REASONS.get(status, b"")
        return self._send(h11.Response(status_code=status, headers=list(fields.items()), reason=reason))

    def data(self, data: bytes) -> bytes:
        return b"" if self._bodiless or not data else self._send(h11.Data(data=data))

    def end(self) -> bytes:
        return self._send(h11.EndOfMessage())

    def _send(self, event: h11.Event) -> bytes:
        return self._http.send(event) or b""
