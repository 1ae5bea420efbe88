"""A bound on how often strangers may call: what Enroll and Renew cost is paid before anybody is known."""

from __future__ import annotations

import math

from shovey_trio.core.errors import Overloaded
from shovey_trio.nursery.ports import Clock


class CallRate:
    """A token bucket over all callers together; a full one lets a minute's calls through at once."""

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._left = float(per_minute)
        self._filled_at = clock.now()

    def take(self) -> None:
        """Counts one call.

        Raises:
            Overloaded: one too many; ``retry_after_s`` says when the next is let through.
        """
        now = self._clock.now()
        rate = self._per_minute / 60
        # A clock that is set back must not lock everybody out.
        self._left = min(float(self._per_minute), self._left + max(now - self._filled_at, 0.0) * rate)
        self._filled_at = now
        if self._left < 1:
            retry_after = str(math.ceil((1 - self._left) / rate))
            raise Overloaded(
                f"more than {self._per_minute} enrolments and renewals a minute",
                limit="enroll_per_minute",
                retry_after_s=retry_after,
            )
        self._left -= 1
