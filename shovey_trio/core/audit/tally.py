"""What strangers can make happen without end, on its way to the audit log: the first of a kind at once, then counts.

A window of a minute has room for a few kinds (who, from where, what); those beyond are counted together. So a flood
costs the log a fixed number of records a minute, whoever floods, and still leaves its size and its first senders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from shovey_trio.core.audit.records import AuditEntry

WINDOW: Final = 60.0
# Kinds told apart in a window. At most 2 × 16 + 1 records a minute: some 20 MB a day under an attack that never ends.
KINDS: Final = 16


@dataclass(slots=True)
class _Kind:
    entry: AuditEntry
    further: int = 0
    last_at: float = 0.0


class AuditTally:
    """A bounded counter of entries that are alike but for their time and details."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, ...], _Kind] = {}
        self._others: _Kind | None = None

    def note(self, entry: AuditEntry) -> bool:
        """Counts an entry; whether it is to be recorded as it is, because it is the first of its kind."""
        key = (
            entry.organization,
            str(entry.action),
            entry.outcome.value,
            entry.principal,
            entry.method,
            entry.peer,
            entry.rule,
        )
        known = self._kinds.get(key)
        if known is not None:
            known.further += 1
            known.last_at = entry.at
            return False
        if len(self._kinds) >= KINDS:
            if self._others is None:
                blank = replace(entry, principal="", method="", peer="", rule="many", subject="", detail={})
                self._others = _Kind(blank)
            self._others.further += 1
            self._others.last_at = entry.at
            return False
        self._kinds[key] = _Kind(entry)
        return True

    def close_window(self) -> Sequence[AuditEntry]:
        """The records of what was counted and not recorded, and begins the next window."""
        kinds = [*self._kinds.values(), *([self._others] if self._others else [])]
        self._kinds = {}
        self._others = None
        return [_summary(kind) for kind in kinds if kind.further]


def _summary(kind: _Kind) -> AuditEntry:
    detail = {"further": kind.further, "first_at": kind.entry.at, "last_at": kind.last_at}
    return replace(kind.entry, at=kind.last_at, subject="", detail=detail)
