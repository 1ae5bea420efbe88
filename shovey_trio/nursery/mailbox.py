"""A bounded queue into one task: what a run's task is told, and taken all at once.

Not trio's memory channel: a run has one for its whole life, usually takes three events from it, and wants those that
came together together. This one is two objects until somebody has to wait, and costs a reader one wake-up however many
items came meanwhile. An item may linger: it is not worth a wake-up of its own, because others are likely to follow.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class Mailbox(Generic[T]):
    """Items for one reader from any number of writers; those of one writer stay in order.

    Args:
        bound: how many items may wait before writers do.
    """

    __slots__ = ("_arrival", "_bound", "_closed", "_items", "_patience", "_room")

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._items: deque[T] = deque()
        self._closed = False
        self._arrival: trio.Event | None = None  # while the reader waits
        self._patience: trio.CancelScope | None = None  # as long: until when it does
        self._room: trio.Event | None = None  # while writers wait

    @property
    def is_closed(self) -> bool:
        return self._closed

    @property
    def is_empty(self) -> bool:
        return not self._items

    async def put(self, item: T, *, linger: float = 0.0) -> bool:
        """Hands over ``item`` as soon as there is room; False when the mailbox is closed, before or meanwhile.

        A checkpoint only if it has to wait. Cancellation: the item was not handed over.

        Args:
            item: for the reader.
            linger: seconds for which a reader that waits need not be woken for it.
        """
        while len(self._items) >= self._bound and not self._closed:
            if self._room is None:
                self._room = trio.Event()
            await self._room.wait()
        if self._closed:
            return False
        self.put_nowait(item, linger=linger)
        return True

    def put_nowait(self, item: T, *, linger: float = 0.0) -> None:
        """Hands over ``item`` whether or not there is room; for the first one, which is never too many."""
        self._items.append(item)
        if self._arrival is None or self._patience is None:
            return
        if linger and len(self._items) < self._bound:
            self._patience.deadline = min(self._patience.deadline, trio.current_time() + linger)
        else:
            self._arrival.set()

    async def take_all(self, until: float = math.inf) -> list[T]:
        """Everything that waits, as soon as that is something or the time is over. One reader at a time.

        A checkpoint only if it has to wait. Cancellation: nothing was taken.

        Args:
            until: by trio's clock; then nothing may be what is returned.
        """
        if not self._items:
            with trio.CancelScope(deadline=until) as patience:
                self._arrival, self._patience = trio.Event(), patience
                try:
                    await self._arrival.wait()
                finally:
                    self._arrival = self._patience = None
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
