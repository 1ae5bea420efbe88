"""What strangers can make happen without end, on its way to the audit log: the first of a kind at once, then counts.

A window of a minute has room for a few kinds (who, from where, what) of each action; those beyond are counted together.
So a flood costs the log a fixed number of records a minute, whoever floods, and still leaves its size and its first
senders. Of that room one origin has a part: it cannot make others nameless.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from shovey_trio.core.audit.records import AuditEntry

WINDOW: Final = 60.0
# Kinds of an action told apart in a window. At most 2 × 16 + 1 records a minute: some 20 MB a day of each of the four
# or five actions that can be flooded, under an attack that never ends.
KINDS: Final = 16
# Of those, one origin's; the last of them stands for all further ones of the origin.
EACH: Final = 4
_MANY: Final = "many"


@dataclass(slots=True)
class _Kind:
    entry: AuditEntry
    further: int = 0
    last_at: float = 0.0


class AuditTally:
    """A bounded counter of entries that are alike but for their time and details."""

    def __init__(self) -> None:
        self._actions: dict[str, _Action] = {}

    def note(self, entry: AuditEntry, origin: str = "") -> bool:
        """Counts an entry; whether it is to be recorded as it is, because it is the first of its kind.

        Args:
            origin: who makes it happen; empty for the entry's principal, or else its peer.
        """
        action = self._actions.setdefault(str(entry.action), _Action())
        return action.note(entry, origin or entry.principal or entry.peer)

    def close_window(self) -> Sequence[AuditEntry]:
        """The records of what was counted and not recorded, and begins the next window."""
        actions, self._actions = self._actions, {}
        return [summary for action in actions.values() for summary in action.summaries()]


class _Action:
    """The kinds of one action in a window."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, ...], _Kind] = {}
        self._begun: Counter[str] = Counter()
        self._others: _Kind | None = None

    def note(self, entry: AuditEntry, origin: str) -> bool:
        key = (
            entry.organization,
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
        if len(self._kinds) < KINDS and self._begun[origin] < EACH - 1:
            self._begun[origin] += 1
            self._kinds[key] = _Kind(entry)
            return True
        many = self._many(entry, origin)
        many.further += 1
        many.last_at = entry.at
        return False

    def summaries(self) -> Iterator[AuditEntry]:
        for kind in (*self._kinds.values(), *([self._others] if self._others else [])):
            if kind.further:
                counted = {"further": kind.further, "first_at": kind.entry.at, "last_at": kind.last_at}
                whose = kind.entry.detail if kind.entry.rule == _MANY else {}
                yield replace(kind.entry, at=kind.last_at, subject="", detail={**whose, **counted})

    def _many(self, entry: AuditEntry, origin: str) -> _Kind:
        """What counts the further kinds of an origin, or of all where there is no room for that."""
        blank = replace(entry, method="", peer="", rule=_MANY, subject="", detail={"origin": origin})
        named = self._kinds.get((_MANY, origin))
        if named is None and self._begun[origin] and len(self._kinds) < KINDS:
            named = self._kinds[_MANY, origin] = _Kind(blank)
        if named is not None:
            return named
        if self._others is None:
            self._others = _Kind(replace(blank, principal="", detail={}))
        return self._others
