"""Failed authentication, wherever it fails: counted for the caller's address, and noted for the audit log."""

from __future__ import annotations

from shovey_trio.application.audit import AuditLog
from shovey_trio.core.errors import ShoveyError, TooManyFailures
from shovey_trio.core.trust.attempt_limits import AttemptLimits
from shovey_trio.nursery.ports import Clock


class FailedAttempts:
    """One for all listeners of a controller."""

    def __init__(self, *, per_minute: int, audit: AuditLog, clock: Clock) -> None:
        self._limits = AttemptLimits(per_minute)
        self._audit = audit
        self._clock = clock

    def wait(self, address: str, claimed: str) -> int:
        """Seconds for which ``check`` would refuse; 0 if it would not."""
        return self._limits.wait(address, claimed, self._clock.now())

    def check(self, address: str, claimed: str) -> None:
        """Before anything is done for a caller who has proved nothing yet.

        Raises:
            TooManyFailures: it has failed too often; nothing was done.
        """
        wait = self.wait(address, claimed)
        if wait:
            error = TooManyFailures(
                "too many failed attempts from this address", limit="failed_auth_per_minute", retry_after_s=str(wait)
            )
            self._audit.note_unproven(error, claimed=claimed)
            raise error

    def failed(self, error: ShoveyError, address: str, claimed: str) -> None:
        """Counts and notes a failure."""
        self._limits.failed(address, claimed, self._clock.now())
        self._audit.note_unproven(error, claimed=claimed)
