"""A store that was put back from an older copy: noticed before it is used, and put right when it was done on purpose.

What was signed beside the store says how far its audit log went. A copy that does not reach that, or that went on from
an earlier place, is refused: it would let in whoever was put out since, take tokens that were used, and ask nodes for
runs that have ended. ``accept_restore`` makes it fit to be served.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import trio

from shovey_trio.application.audit_anchor import HeadFile, open_anchor
from shovey_trio.core.audit.head import SignedHead
from shovey_trio.core.audit.records import AuditAction, AuditBroken, AuditEntry, AuditHead, AuditOutcome
from shovey_trio.core.errors import Code, Exit, ShoveyError
from shovey_trio.nursery.ports import Clock
from shovey_trio.store.contract import RestorableStore


class StoreOlder(ShoveyError):
    """The store is not as this controller left it: its audit log lacks what was signed beside it."""

    reason, code, http, exit = "STORE_OLDER", Code.FAILED_PRECONDITION, 500, Exit.CONFLICT


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What was done to an older copy.

    Attributes:
        runs: how many are unknown now.
        rights_kept: whether rights are as they were kept beside the store, and not as in the copy.
    """

    runs: int
    rights_kept: bool


async def check_store(store: RestorableStore, file: HeadFile) -> None:
    """Holds when the store has what was signed beside it, or nothing was.

    Raises:
        StoreOlder: it has not; the message says what to do.
    """
    signed = await _signed(file)
    if signed is not None and await _lacks(store, signed.head):
        head = await store.audit_head()
        at = datetime.fromtimestamp(signed.at, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        raise StoreOlder(
            f"the store is an older copy, or another one: its audit log ends at record {head.seq} and lacks what was "
            f"signed at record {signed.head.seq} on {at}; put the right one back or, if it was restored on purpose, "
            "start once with --restored",
            signed=str(signed.head),
            found=str(head),
        )


async def accept_restore(
    store: RestorableStore, file: HeadFile, *, clock: Clock, organization: str, principal: str
) -> Restored:
    """Makes an older copy fit to be served, once ``sign_anew`` is done too; see ``Store.accept_restore``. Recorded.

    Interrupted, it is done again with no harm. Rights are those that were kept last, unless the store is newer.

    Raises:
        AuditBroken: what was kept of rights does not hold.
        StoreUnavailable, OSError: it cannot be written now.
    """
    signed = await _signed(file)
    rights = None
    if signed is None or await _lacks(store, signed.head):
        rights = await trio.to_thread.run_sync(file.read_rights)
    found = await store.audit_head()
    entry = AuditEntry(
        at=clock.now(),
        organization=organization,
        action=AuditAction.STORE_RESTORED,
        outcome=AuditOutcome.ALLOWED,
        principal=principal,
        rule="owner of the data directory",
        subject="store",
        detail={
            "copy": str(found),
            "signed": None if signed is None else str(signed.head),
            "rights": "as in the copy" if rights is None else "as they were last",
        },
    )
    runs = await store.accept_restore(rights=rights, now=clock.now(), audit=entry)
    return Restored(runs=len(runs), rights_kept=rights is not None)


async def sign_anew(store: RestorableStore, file: HeadFile, *, clock: Clock) -> None:
    """Signs the head of a store that was accepted, in the place of the one that it does not have.

    Raises:
        StoreUnavailable, OSError: it cannot be written now.
    """
    anchor = await open_anchor(store=store, file=file, clock=clock, anew=True)
    await anchor.sign_or_raise()


async def _lacks(store: RestorableStore, signed: AuditHead) -> bool:
    start, head = await store.audit_start(), await store.audit_head()
    if signed.seq <= start.seq:
        # Pruned since: what is left of it is its checkpoint.
        return signed.seq == start.seq and signed != start
    if signed.seq > head.seq:
        return True
    records = await store.read_audit(after_seq=signed.seq - 1, limit=1)
    return not records or records[0].head != signed


async def _signed(file: HeadFile) -> SignedHead | None:
    try:
        return await trio.to_thread.run_sync(file.read_head)
    except AuditBroken:
        return None  # reported by the anchor; nothing can be concluded from it
