"""A pool of bytes that all agents' uploads share, so that received and not yet durable output stays bounded."""

from __future__ import annotations

from collections import deque

import trio


class ByteCredits:
    """Hands out bytes first come, first served. More than the whole pool at once is cut to the pool."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._free = total
        self._waiting: deque[tuple[int, trio.Event]] = deque()

    @property
    def in_use(self) -> int:
        return self._total - self._free

    async def take(self, amount: int) -> int:
        """Waits for ``amount`` bytes and returns how many to give back; cancelling the wait takes none."""
        amount = min(amount, self._total)
        if not self._waiting and amount <= self._free:
            self._free -= amount
            await trio.lowlevel.cancel_shielded_checkpoint()
            return amount
        entry = (amount, trio.Event())
        self._waiting.append(entry)
        try:
            await entry[1].wait()
        except trio.Cancelled:
            if entry[1].is_set():
                self.give_back(amount)
            else:
                self._waiting.remove(entry)
                self._serve()
            raise
        return amount

    def give_back(self, amount: int) -> None:
        self._free += amount
        self._serve()

    def _serve(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._free:
            amount, event = self._waiting.popleft()
            self._free -= amount
            event.set()
