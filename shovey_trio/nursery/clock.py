"""Wall-clock time for the nursery."""

from __future__ import annotations

import time

import trio


class WallClock:
    """The system's clock."""

    def now(self) -> float:
        return time.time()


class TrioClock:
    """Unix time that moves with trio's clock, for tests on virtual time.

    Args:
        epoch: the unix time at which it starts.
    """

    def __init__(self, epoch: float = 1_800_000_000.0) -> None:
        self._offset = epoch - trio.current_time()

    def now(self) -> float:
        return trio.current_time() + self._offset
