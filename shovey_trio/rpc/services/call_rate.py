"""How many certificates are renewed a minute: each costs a signature and two commits.

Only what has proved to be right is counted, so that nothing invalid uses it up; enrolment needs no such bound, because
every token is made by an admin and good for one.
"""

from __future__ import annotations

from shovey_trio.core.errors import Overloaded
from shovey_trio.core.trust.attempt_limits import AttemptLimits
from shovey_trio.nursery.ports import Clock

# One node has this part of them.
_NODES = 10
_ALL = "all"


class CallRate:
    """Allowances of all callers together and of each; a minute's may be used at once."""

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._limits = AttemptLimits(max(per_minute // _NODES, 1), per_address=per_minute)

    def take(self, who: str) -> None:
        """Counts one call of ``who``.

        Raises:
            Overloaded: one too many; ``retry_after_s`` says when the next is let through.
        """
        now = self._clock.now()
        wait = self._limits.wait(_ALL, who, now)
        if wait:
            raise Overloaded(
                f"more than {self._per_minute} renewals a minute, or a tenth of them by one node",
                limit="enroll_per_minute",
                retry_after_s=str(wait),
            )
        self._limits.failed(_ALL, who, now)
