"""The one response to a request, on its way out."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from email.utils import formatdate
from functools import lru_cache

from shovey_trio.http.framing import Framing

SendBytes = Callable[[bytes], Awaitable[None]]


class ConnectionCut(Exception):
    """The connection is of no use any more: the client is gone, or does not read."""


class Reply:
    """A response: ``begin``, then ``write`` any number of times, then ``finish``.

    What is written at once with the head goes out with it, so that an answer that is ready costs one system call.
    """

    def __init__(self, framing: Framing, send: SendBytes, *, close_after: bool) -> None:
        self._framing = framing
        self._send = send
        self.close_after = close_after
        self.begun = False
        self.finished = False

    async def begin(self, status: int, headers: Mapping[str, str], first: bytes = b"", *, whole: bool = False) -> None:
        """Sends the head and the first piece of the body; ``whole``: there is no other."""
        if self.begun:
            raise RuntimeError("a handler sends one response")
        self.begun = True
        fields = {"Date": _date(int(time.time())), **headers}
        if whole and "Content-Length" not in fields:
            fields["Content-Length"] = str(len(first))
        if self.close_after:
            fields["Connection"] = "close"
        data = self._framing.head(status, fields) + self._framing.data(first)
        if whole:
            data += self._framing.end()
            self.finished = True
        await self._send(data)

    async def write(self, data: bytes) -> None:
        """Sends a piece of the body; waits while the client is slow, within the server's limit for that."""
        if framed := self._framing.data(data):
            await self._send(framed)

    async def finish(self) -> None:
        """Ends the response."""
        self.finished = True
        if framed := self._framing.end():
            await self._send(framed)


@lru_cache(maxsize=2)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)
