"""The audit log of the memory store."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from shovey_trio.core.audit.records import GENESIS, AuditEntry, AuditHead, AuditRecord, chain_record
from shovey_trio.core.errors import StoreUnavailable
from shovey_trio.store.sql.audit import PRUNE_ROWS, has_changed, pruned_entry


class MemoryAudit:
    """See ``store.contract.AuditStore``; the part of ``MemoryStore`` that is about audit."""

    def __init__(self) -> None:
        self._audit: list[AuditRecord] = []
        self._audit_start = GENESIS

    @property
    def failure(self) -> str:
        return ""

    async def append_audit(self, entries: Sequence[AuditEntry]) -> AuditHead:
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.failure:
            raise StoreUnavailable(self.failure)
        for entry in entries:
            self._add_audit(entry)
        head = self._head()
        await trio.lowlevel.checkpoint()
        return head

    async def audit_head(self) -> AuditHead:
        await trio.lowlevel.checkpoint()
        return self._head()

    async def audit_start(self) -> AuditHead:
        await trio.lowlevel.checkpoint()
        return self._audit_start

    async def read_audit(
        self,
        *,
        after_seq: int,
        limit: int,
        organization: str = "",
        since: float | None = None,
        until: float | None = None,
    ) -> Sequence[AuditRecord]:
        await trio.lowlevel.checkpoint()
        found = [
            record
            for record in self._audit
            if record.seq > after_seq
            and organization in ("", record.organization)
            and (since is None or record.at >= since)
            and (until is None or record.at < until)
        ]
        return tuple(found[:limit])

    async def prune_audit(self, *, before: float, now: float, organization: str) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.failure:
            raise StoreUnavailable(self.failure)
        while self._prune(before, now, organization):
            pass
        await trio.lowlevel.checkpoint()

    def _record_change(self, entry: AuditEntry | None, result: object = None) -> None:
        """What a write does with its entry, when it has happened."""
        if entry is not None and has_changed(result):
            self._add_audit(entry)

    def _add_audit(self, entry: AuditEntry) -> None:
        self._audit.append(chain_record(self._head(), entry))

    def _head(self) -> AuditHead:
        return self._audit[-1].head if self._audit else self._audit_start

    def _prune(self, before: float, now: float, organization: str) -> bool:
        old = 0
        while old < min(len(self._audit) - 1, PRUNE_ROWS) and self._audit[old].at < before:
            old += 1
        if not old:
            return False
        self._audit_start = self._audit[old - 1].head
        del self._audit[:old]
        self._add_audit(pruned_entry(self._audit_start, old, now, organization))
        return True
