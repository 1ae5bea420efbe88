"""Audit as the application sees it: what a call's record says, and the way of what nobody waits for to the log.

What an action changes is recorded in the commit of the change: its code makes an entry (``audit_entry``) and hands it
to the store with the write. Everything else is noted here without waiting: refused calls and orders, failed
authentication, and how often who has read what. Of these the first of a kind is recorded at once and more are counted
(``core.audit.tally``), so that nobody can fill the disk. What is noted and not yet written is lost in a crash; what was
acknowledged never is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
import trio

from shovey_trio.core.audit.records import AuditAction, AuditEntry, AuditOutcome
from shovey_trio.core.audit.tally import WINDOW, AuditTally
from shovey_trio.core.errors import ShoveyError
from shovey_trio.core.jobs.model import Principal
from shovey_trio.core.trust.key_sets import KeySet
from shovey_trio.core.trust.key_trust import PublishedKeys
from shovey_trio.nursery.ports import Clock
from shovey_trio.store.contract import AuditStore

_log = structlog.get_logger(__name__)

# Kinds of calls counted in a window: 48 × ~120 bytes fit one record, more are counted together.
_COUNTED: Final = 48
# Of those, one caller's, and one more for all further ones of theirs.
_COUNTED_EACH: Final = 8
_OTHERS: Final = "others"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOrigin:
    """Where the call that is being handled comes from, and what has let it in.

    Attributes:
        peer: address without the port.
        rule: the line of the policy.
        principal: who calls, as soon as it is proven; of the organization beside it.
    """

    method: str
    peer: str
    rule: str = ""
    principal: str = ""
    organization: str = ""


_NOWHERE: Final = CallOrigin(method="", peer="")
_origin: ContextVar[CallOrigin] = ContextVar("origin", default=_NOWHERE)


def set_origin(origin: CallOrigin) -> None:
    """Says where the call comes from that this task, and those it starts, handle from now on."""
    _origin.set(origin)


def origin() -> CallOrigin:
    """Where the call that is being handled comes from; empty outside of calls."""
    return _origin.get()


def caller_key() -> str:
    """Whose share the call that is being handled uses: who calls if that is proven, else where it comes from."""
    came = origin()
    return f"{came.organization}/{came.principal}" if came.principal else came.peer


def audit_entry(
    at: float,
    action: str,
    *,
    organization: str,
    principal: str,
    rule: str = "",
    subject: str = "",
    outcome: AuditOutcome = AuditOutcome.ALLOWED,
    detail: Mapping[str, Any] | None = None,
    came: CallOrigin | None = None,
) -> AuditEntry:
    """The entry of an action; ``rule`` is added to the line that let the call in.

    Args:
        came: where it came from; the call that is being handled by default.
    """
    came = origin() if came is None else came
    return AuditEntry(
        at=at,
        organization=organization,
        action=action,
        outcome=outcome,
        principal=principal,
        method=came.method,
        peer=came.peer,
        rule="; ".join(filter(None, (came.rule, rule))),
        subject=subject,
        detail=detail or {},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """Who has something changed, in which organization, when, and by what door.

    Attributes:
        label: of a principal, such as ``user/ada``; ``host/NAME`` for a command on the controller's host.
    """

    organization: str
    label: str
    at: float
    came: CallOrigin = field(default_factory=origin)

    @classmethod
    def of(cls, principal: Principal, at: float) -> Actor:
        """A caller, for the call that is being handled."""
        return cls(organization=principal.organization, label=principal.label, at=at)

    def entry(self, action: str, subject: str, *, rule: str = "", **detail: object) -> AuditEntry:
        """The record of what they have changed."""
        return audit_entry(
            self.at,
            action,
            organization=self.organization,
            principal=self.label,
            rule=rule,
            subject=subject,
            detail=detail,
            came=self.came,
        )


async def record(store: AuditStore, entry: AuditEntry) -> None:
    """Records what was done to files; a change of the store is recorded by the write that makes it."""
    await store.append_audit([entry])


def keys_entry(
    actor: Actor, keys: KeySet, action: str = AuditAction.KEYS_CHANGED, rule: str = "", **detail: Any
) -> AuditEntry:
    """The record of which keys are in force from now on."""
    known = {key.key_id: key.state.value for key in keys.keys}
    return actor.entry(action, f"keys/{keys.serial}", rule=rule, keys=known, **detail)


class AuditLog:
    """Takes notes from anywhere in the trio thread; ``serve`` writes them."""

    def __init__(self, *, store: AuditStore, clock: Clock, organization: str) -> None:
        self._store = store
        self._clock = clock
        self._organization = organization
        self._tally = AuditTally()
        # Firsts of a kind: at most ``KINDS`` and one in a window; what cannot be written now waits here for the next.
        self._firsts: list[AuditEntry] = []
        self._calls: dict[str, int] = {}
        self._work = trio.Event()

    @property
    def organization(self) -> str:
        return self._organization

    def note(self, entry: AuditEntry, origin: str = "") -> None:
        """Notes something that anybody may cause without end; ``origin`` as for ``AuditTally.note``."""
        if self._tally.note(entry, origin):
            self._firsts.append(entry)
            self._work.set()

    def note_call(self, principal: Principal) -> None:
        """Counts a call that changes nothing."""
        came = origin()
        who = f"{principal.organization} {principal.label} "
        kind = f"{who}{came.method} {came.peer}"
        if kind not in self._calls and sum(known.startswith(who) for known in self._calls) >= _COUNTED_EACH:
            kind = f"{who}{_OTHERS}"
        if kind not in self._calls and len(self._calls) >= _COUNTED:
            kind = _OTHERS
        self._calls[kind] = self._calls.get(kind, 0) + 1

    def note_refused(self, error: ShoveyError) -> None:
        """Notes that the call that is being handled was refused to a caller who is known."""
        self.note(
            audit_entry(
                self._clock.now(),
                AuditAction.CALL_REFUSED,
                organization=origin().organization or self._organization,
                principal=origin().principal,
                rule=error.reason,
                outcome=AuditOutcome.REFUSED,
                detail={"error": error.message[:500]},
            )
        )

    def note_unproven(self, error: ShoveyError, *, claimed: str) -> None:
        """Notes that somebody could not prove to be who they say they are."""
        self.note(
            audit_entry(
                self._clock.now(),
                AuditAction.AUTHENTICATION_FAILED,
                organization=self._organization,
                principal="",
                rule=error.reason,
                outcome=AuditOutcome.REFUSED,
                detail={"claimed": claimed[:200], "error": error.message[:500]},
            )
        )

    async def keys_changed(
        self, keys: PublishedKeys, action: AuditAction = AuditAction.KEYS_CHANGED, **detail: object
    ) -> None:
        """Records which keys are in force from now on.

        Raises:
            StoreUnavailable: it cannot be recorded now.
        """
        actor = Actor(organization=keys.keys.organization, label="controller", at=self._clock.now())
        rule = "signed by the organization's root key" if keys.signed else "no root key"
        await record(self._store, keys_entry(actor, keys.keys, action, rule, **detail))

    def note_foreign_run(self, organization: str, node: str, run_id: str) -> None:
        """Notes that a node has spoken of another node's run."""
        self.note(
            audit_entry(
                self._clock.now(),
                AuditAction.FOREIGN_RUN,
                organization=organization,
                principal=f"node/{node}",
                rule="a node speaks of its own runs only",
                subject=f"run/{run_id[:64]}",
                outcome=AuditOutcome.REFUSED,
            )
        )

    async def serve(self) -> None:
        """Writes what was noted, until cancelled; what a store that fails cannot take is kept and counted on."""
        while True:
            closes_at = trio.current_time() + WINDOW
            while trio.current_time() < closes_at:
                with trio.move_on_at(closes_at):
                    await self._work.wait()
                self._work = trio.Event()
                await self._write(self._firsts)
            await self._write([*self._firsts, *self._close_window()])

    async def close(self) -> None:
        """Writes what is left, at the end of the daemon's life."""
        await self._write([*self._firsts, *self._close_window()])

    def _close_window(self) -> Sequence[AuditEntry]:
        closed = list(self._tally.close_window())
        if self._calls:
            calls, self._calls = self._calls, {}
            closed.append(
                AuditEntry(
                    at=self._clock.now(),
                    organization=self._organization,
                    action=AuditAction.CALLS,
                    outcome=AuditOutcome.ALLOWED,
                    detail=dict(sorted(calls.items())),
                )
            )
        return closed

    async def _write(self, entries: Sequence[AuditEntry]) -> None:
        if not entries:
            return
        entries, self._firsts = list(entries), []
        try:
            await self._store.append_audit(entries)
        except ShoveyError as error:
            _log.error("audit.not_written", records=len(entries), error=error.message)
            # Bounded: while they wait, each window's own are few, and only as many are kept as a window has.
            self._firsts = [*entries, *self._firsts][: 2 * _COUNTED]
