"""A bounded queue into one task: what a run's task is told, and taken all at once.

Not trio's memory channel: a run has one for its whole life, usually takes three events from it, and wants those that
came together together. This one is two objects until somebody has to wait, and costs a reader one wake-up however many
items came meanwhile.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class Mailbox(Generic[T]):
    """Items for one reader from any number of writers; those of one writer stay in order.

    Args:
        bound: how many items may wait before writers do.
    """

    __slots__ = ("_arrival", "_bound", "_closed", "_items", "_room")

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._items: deque[T] = deque()
        self._closed = False
        self._arrival: trio.Event | None = None  # while the reader waits
        self._room: trio.Event | None = None  # while writers wait

    @property
    def is_closed(self) -> bool:
        return self._closed

    @property
    def is_empty(self) -> bool:
        return not self._items

    async def put(self, item: T) -> bool:
        """Hands over ``item`` as soon as there is room; False when the mailbox is closed, before or meanwhile.

        A checkpoint only if it has to wait. Cancellation: the item was not handed over.
        """
        while len(self._items) >= self._bound and not self._closed:
            if self._room is None:
                self._room = trio.Event()
            await self._room.wait()
        if self._closed:
            return False
        self.put_nowait(item)
        return True

    def put_nowait(self, item: T) -> None:
        """Hands over ``item`` whether or not there is room; for the first one, which is never too many."""
        self._items.append(item)
        if self._arrival is not None:
            self._arrival.set()

    async def take_all(self) -> list[T]:
        """Everything that waits, as soon as that is something. One reader at a time.

        A checkpoint only if it has to wait. Cancellation: nothing was taken.
        """
        while not self._items:
            self._arrival = trio.Event()
            try:
                await self._arrival.wait()
            finally:
                self._arrival = None
        return self._take()

    def close(self) -> list[T]:
        """Refuses everything from now on, waiting writers included, and returns what nobody has taken."""
        self._closed = True
        return self._take()

    def _take(self) -> list[T]:
        taken = list(self._items)
        self._items.clear()
        if self._room is not None:
            self._room.set()
            self._room = None
        return taken
