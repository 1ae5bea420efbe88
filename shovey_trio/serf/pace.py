"""How fast queries may be sent: gossip carries about 17 packets a second per agent, however many members there are.

Pure bookkeeping: time is passed in, nothing waits here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PaceLimits:
    """What one cluster bears (measured and simulated for 50 to 10,000 members).

    Attributes:
        rate: queries per second in the long run.
        burst: queries at once after a rest.
        max_outstanding: queries with targets that were not heard from.
        slow_depth: above this length of the agent's query queue, half the rate.
        stop_depth: above this, none.
    """

    rate: float = 1.0
    burst: int = 10
    max_outstanding: int = 10
    slow_depth: int = 64
    stop_depth: int = 256


class Pace:
    """A token bucket whose rate follows the agent's queue.

    Args:
        limits: what the cluster bears.
        now: any clock that does not go back, in seconds; the same one in every call.
    """

    def __init__(self, limits: PaceLimits, *, now: float) -> None:
        self._limits = limits
        self._tokens = float(limits.burst)
        self._at = now

    def delay(self, *, now: float, outstanding: int, depth: int) -> float | None:
        """Seconds until the next query may go, 0 for now, None while only a change of the other two can allow it."""
        limits = self._limits
        self._fill(now, depth)
        if outstanding >= limits.max_outstanding or depth > limits.stop_depth:
            return None
        return 0.0 if self._tokens >= 1 else (1 - self._tokens) / self._rate(depth)

    def take(self) -> None:
        """Counts a query that is sent now, right after ``delay`` said 0."""
        self._tokens -= 1

    def _fill(self, now: float, depth: int) -> None:
        self._tokens = min(float(self._limits.burst), self._tokens + (now - self._at) * self._rate(depth))
        # Waiting for exactly the missing part must be enough, whatever rounding says.
        if 1 - 1e-9 <= self._tokens < 1:
            self._tokens = 1.0
        self._at = now

    def _rate(self, depth: int) -> float:
        return self._limits.rate / 2 if depth > self._limits.slow_depth else self._limits.rate
