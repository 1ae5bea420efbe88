"""Bodies of requests, as they come in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import h11

if TYPE_CHECKING:
    from shovey_trio.http.connection import HttpConnection

_PIECE: Final = 65_536


class Body(Protocol):
    """A request's body, still on its way."""

    async def receive(self) -> bytes:
        """The next piece, at most 64 KiB; empty at the end.

        Raises:
            HttpRefused: it does not come in time (408).
        """
        ...

    def is_over(self) -> bool:
        """Whether nothing of it is left."""
        ...


class PlainBody:
    """Of a request whose head was read in one pass."""

    def __init__(self, connection: HttpConnection, *, length: int) -> None:
        self._connection = connection
        self._left = length

    def is_over(self) -> bool:
        return not self._left

    async def receive(self) -> bytes:
        if not self._left:
            return b""
        piece = await self._connection.next_plain_piece(min(self._left, _PIECE))
        self._left -= len(piece)
        return piece


class H11Body:
    """Of the request that h11 is at."""

    def __init__(self, connection: HttpConnection) -> None:
        self._connection = connection
        self._ended = False

    async def receive(self) -> bytes:
        while not self._ended:
            match await self._connection.next_body_event():
                case h11.Data(data=data) if data:
                    return bytes(data)
                case h11.EndOfMessage():
                    self._ended = True
        return b""

    def is_over(self) -> bool:
        # Remembered: h11 tells the end once.
        self._ended = self._ended or self._connection.is_at_end()
        return self._ended
