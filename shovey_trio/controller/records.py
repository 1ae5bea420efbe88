"""What a running controller keeps on record: the audit log, its signed head, and failed attempts at authentication."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from shovey_trio.application.attempts import FailedAttempts
from shovey_trio.application.audit import AuditLog
from shovey_trio.application.audit_anchor import open_anchor
from shovey_trio.application.organization_keys import OrganizationKeys
from shovey_trio.config.server import ServerSettings
from shovey_trio.core.audit.records import AuditAction
from shovey_trio.identity.audit_files import AuditFiles
from shovey_trio.nursery.ports import Clock
from shovey_trio.store.contract import RestorableStore

# Seconds for the last records of the audit log, and its signed head.
_LAST_RECORDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """Made by ``open_records``."""

    audit: AuditLog
    attempts: FailedAttempts


@asynccontextmanager
async def open_records(
    settings: ServerSettings, *, store: RestorableStore, keys: OrganizationKeys, clock: Clock, epoch: int
) -> AsyncIterator[Records]:
    """Records the start, then what happens in the block; at its end what is left is written and the head signed.

    Raises:
        StoreUnavailable: the start cannot be recorded.
        InsecureFile, FileUnusable: the key of the log's head cannot be used.
        OSError: it cannot be made.
    """
    audit = AuditLog(store=store, clock=clock, organization=settings.server.organization)
    anchor = await open_anchor(store=store, file=AuditFiles(settings.directory), clock=clock)
    for organization in keys.active():
        await audit.keys_changed(keys.published(organization), AuditAction.CONTROLLER_STARTED, epoch=epoch)
    attempts = FailedAttempts(per_minute=settings.limits.failed_auth_per_minute, audit=audit, clock=clock)
    async with trio.open_nursery() as nursery:
        # What is noted before they have begun waits for them.
        nursery.start_soon(audit.serve)  # noqa: ASYNC113
        nursery.start_soon(anchor.serve)  # noqa: ASYNC113
        yield Records(audit=audit, attempts=attempts)
        nursery.cancel_scope.cancel(reason="the controller stops")
    with trio.CancelScope(shield=True, deadline=trio.current_time() + _LAST_RECORDS):
        await audit.close()
        await anchor.sign()
