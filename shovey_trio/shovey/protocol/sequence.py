"""Sequence numbers of output, as Shovey's clients count it.

schob sent output in pieces of 1,024 bytes and numbered them per stream, and clients ask for everything from a number
on. Here a number is a place in the stream, so that it means the same however the output travelled: piece ``n`` begins
at byte ``n × 1024``, moved on to the next character if that byte is in the middle of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from shovey_trio.core.errors import InvalidRequest

PIECE: Final = 1_024
#: Bytes that have to be looked at to find where a piece begins: a UTF-8 character has at most three more.
LOOK_AHEAD: Final = 3
_CONTINUATION: Final = range(0x80, 0xC0)
_LARGEST: Final = 2**40


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """Which bytes to answer with.

    Attributes:
        begin, end: nominal places in the stream; each is moved by ``boundary``, unless it is the stream's own end.
        last_seq: the number of the last piece among them; None when there is none.
    """

    begin: int
    end: int
    last_seq: int | None


def read_sequence(text: str) -> int:
    """A sequence number of a request.

    Raises:
        InvalidRequest: it is none.
    """
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()) or len(digits) > len(str(_LARGEST)):
        raise InvalidRequest(f"sequence {text!r} is not a number", field="sequence")
    return int(text)


def pieces(sequence: int, *, size: int, complete: bool) -> Pieces:
    """What a request for ``sequence`` gets of a stream that has ``size`` bytes by now.

    Of a stream that is not complete only whole pieces are given, so that a client that goes on with ``last_seq + 1``
    gets every byte once. And for 0 nothing is: knife asks for 0 again and again until the stream is complete, and
    prints all that it gets.
    """
    begin = max(0, sequence) * PIECE
    if sequence < 0 or (sequence == 0 and not complete):
        return Pieces(begin=0, end=0, last_seq=None)
    if complete:
        # An empty stream has one piece, which is empty.
        last = max(0, (size - 1) // PIECE)
        return Pieces(begin=min(begin, size), end=size, last_seq=last if sequence <= last else None)
    # The piece before the last whole one, so that its end can be looked at.
    last = (size - LOOK_AHEAD) // PIECE - 1
    if last < sequence:
        return Pieces(begin=begin, end=begin, last_seq=None)
    return Pieces(begin=begin, end=(last + 1) * PIECE, last_seq=last)


def boundary(window: bytes) -> int:
    """How far a piece's nominal begin moves on, given the bytes that stand there; 0 to 3."""
    moved = 0
    for byte in window[:LOOK_AHEAD]:
        if byte not in _CONTINUATION:
            return moved
        moved += 1
    # Three in a row may still be the end of a four-byte character.
    return moved
