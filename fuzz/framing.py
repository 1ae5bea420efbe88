"""Messages one after the other in one input, and the event loop that the code under test needs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import trio
from google.protobuf.message import DecodeError, Message

from shovey_trio.core.errors import first_leaf

_M = TypeVar("_M", bound=Message)


def framed(*messages: Message) -> bytes:
    """Each message behind its length in two bytes, big-endian."""
    packed = [message.SerializeToString() for message in messages]
    return b"".join(len(raw).to_bytes(2, "big") + raw for raw in packed)


def messages(data: bytes, kind: type[_M]) -> Iterator[_M]:
    """What ``framed`` made, up to the first that does not parse: gRPC ends the stream there."""
    at = 0
    while at + 2 <= len(data):
        size = int.from_bytes(data[at : at + 2], "big")
        raw = data[at + 2 : at + 2 + size]
        at += 2 + size
        try:
            yield kind.FromString(raw)
        except DecodeError:
            return


class PeerStream:
    """A stream from somebody who sends these messages and then ends; it serializes what it is sent, as gRPC does."""

    def __init__(self, received: Iterator[Any]) -> None:
        self._received = received

    async def receive(self) -> Any:
        await trio.lowlevel.checkpoint()
        for message in self._received:
            return message
        raise trio.EndOfChannel

    async def send(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        message.SerializeToString()

    @property
    def posted(self) -> int:
        return 0

    def post(self, message: Message) -> None:
        message.SerializeToString()

    def __aiter__(self) -> PeerStream:
        return self

    async def __anext__(self) -> Any:
        try:
            return await self.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None


def run_in_trio(main: Callable[[], Awaitable[object]], *, clock: trio.abc.Clock | None = None) -> None:
    """Runs ``main``; of a group of errors it raises the first, as whoever caught it would."""
    try:
        trio.run(main, clock=clock)
    except BaseExceptionGroup as group:
        raise first_leaf(group) from group
