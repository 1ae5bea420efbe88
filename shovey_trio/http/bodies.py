"""Bodies of requests, as a connection's handler reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import h11
import trio

from shovey_trio.http.messages import Body, HttpRefused

if TYPE_CHECKING:
    from shovey_trio.http.connection import HttpConnection

_PIECE: Final = 65_536


class PlainBody:
    """``messages.Body`` of an ordinary request."""

    def __init__(self, connection: HttpConnection, *, length: int) -> None:
        self._connection = connection
        self._left = length

    def is_over(self) -> bool:
        """Whether nothing of it is left."""
        return not self._left

    async def read(self, limit: int) -> bytes:
        if self._left > limit:
            raise HttpRefused(HttpRefused.TOO_LARGE, "Content-length too long!")
        whole = self._connection.take_received(self._left)
        if whole is not None:
            self._left = 0
            return whole
        return await _read_whole(self, limit, self._connection.limits.body_time)

    async def receive(self) -> bytes:
        if not self._left:
            return b""
        piece = await self._connection.next_plain_piece(min(self._left, _PIECE))
        self._left -= len(piece)
        return piece


class H11Body:
    """``messages.Body`` of the request that h11 is at."""

    def __init__(self, connection: HttpConnection, *, declared: int) -> None:
        self._connection = connection
        self._declared = declared
        self._ended = False

    async def read(self, limit: int) -> bytes:
        if self._declared > limit:
            raise HttpRefused(HttpRefused.TOO_LARGE, "Content-length too long!")
        return await _read_whole(self, limit, self._connection.limits.body_time)

    async def receive(self) -> bytes:
        while not self._ended:
            match await self._connection.next_body_event():
                case h11.Data(data=data) if data:
                    return bytes(data)
                case h11.EndOfMessage():
                    self._ended = True
        return b""

    def is_over(self) -> bool:
        """Whether nothing of it is left."""
        return self._ended or self._connection.is_at_end()


async def _read_whole(body: Body, limit: int, body_time: float) -> bytes:
    collected = bytearray()
    try:
        with trio.fail_after(body_time):
            while piece := await body.receive():
                collected += piece
                if len(collected) > limit:
                    raise HttpRefused(HttpRefused.TOO_LARGE, f"the body is larger than {limit} bytes")
    except trio.TooSlowError:
        raise HttpRefused(HttpRefused.TIMED_OUT, "the request's body took too long") from None
    return bytes(collected)
