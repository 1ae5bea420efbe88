"""The time of the nursery: what is written down, and what is waited for.

What lives – a run's deadline, a node's silence – is measured on trio's clock, which nobody can set. Unix time is for
what is stored, shown, and said to nodes. The daemon's is a ``SteadyClock``: it goes on as it began whatever is done to
the system's clock, and takes a step over in one moment that everybody is told of (``clock_steps``).

Between two steps it is one *frame*: times of one frame can be compared, and every nonce says of which it is, so that
what a node remembers of a wrong time does not bind it in the right one (``core.trust.nonces``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

import trio

# Frames by which stored times are understood; for one of an older frame the oldest of these stands in.
_FRAMES: Final = 16


class WallClock:
    """The system's clock, for what speaks to the outside: certificates, tokens, signed requests, doorbells."""

    def now(self) -> float:
        return time.time()


class SteadyClock:
    """Unix time that nobody can set while it is in use. To be made and used in a trio loop.

    Attributes:
        frame: how often a step was followed.
    """

    def __init__(self, system: Callable[[], float] = time.time) -> None:
        self._system = system
        # When each frame began on trio's clock, and how far unix time is ahead of that clock in it.
        self._frames = [(-math.inf, system() - trio.current_time())]
        self.frame = 0

    def now(self) -> float:
        return trio.current_time() + self._frames[-1][1]

    def time_of(self, moment: float) -> float:
        """What this clock shows at a moment of trio's clock."""
        return moment + self._frames[-1][1]

    def moment_of(self, at: float) -> float:
        """The moment, on trio's clock, at which this clock showed a time, or would have before this process began.

        Of a time that it showed twice, the later moment; for one that it has not shown yet, the present one: the
        process that wrote it down had another clock.
        """
        now = trio.current_time()
        for began, offset in reversed(self._frames):
            if began <= at - offset <= now:
                return at - offset
        return now

    def step(self) -> float:
        """By how many seconds the system's clock is ahead of this one."""
        return self._system() - self.now()

    def trim(self) -> None:
        """Follows the system's clock by so little that it is no step: the frame stays the same."""
        began, offset = self._frames[-1]
        self._frames[-1] = (began, offset + self.step())

    def follow(self) -> None:
        """Takes the time of the system's clock over; a new frame begins."""
        self._frames.append((trio.current_time(), self._frames[-1][1] + self.step()))
        del self._frames[:-_FRAMES]
        self.frame += 1


class TrioClock(SteadyClock):
    """Unix time that moves with trio's clock, for tests on virtual time.

    Args:
        epoch: the unix time at which it starts.
    """

    def __init__(self, epoch: float = 1_800_000_000.0) -> None:
        offset = epoch - trio.current_time()
        super().__init__(lambda: trio.current_time() + offset + self.ahead)

    #: How far the system's clock was set ahead; for tests that set it.
    ahead = 0.0
