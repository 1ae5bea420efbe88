"""The audit log in the store: appended in the commit of what it records, read in order, pruned from its beginning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from sqlalchemy import Connection, Table, delete, func, insert, select

from shovey_trio.core.audit.records import GENESIS, AuditAction, AuditEntry, AuditHead, AuditOutcome, AuditRecord
from shovey_trio.store.contract import CreatedJob
from shovey_trio.store.sql.rows import UndecodableRow
from shovey_trio.store.sql.tables import audit, audit_checkpoints
from shovey_trio.store.sql.transaction import WriteTransaction

P = ParamSpec("P")
T = TypeVar("T")

# Records that one write of pruning takes: some 30 ms, as the other slices of retention.
PRUNE_ROWS: Final = 2_000


def recorded(
    work: Callable[Concatenate[WriteTransaction, P], T], entry: AuditEntry | None
) -> Callable[Concatenate[WriteTransaction, P], T]:
    """The write with its record: both are committed or neither. A write that changed nothing is not recorded."""
    if entry is None:
        return work

    @wraps(work)
    def both(transaction: WriteTransaction, /, *args: P.args, **kwargs: P.kwargs) -> T:
        result = work(transaction, *args, **kwargs)
        if has_changed(result):
            transaction.add_audit(entry)
        return result

    return both


def has_changed(result: object) -> bool:
    """Whether a write that returned this has changed something: not a removal of nothing, nor a repeated creation."""
    return result is not False and not (isinstance(result, CreatedJob) and not result.created)


def append_audit(transaction: WriteTransaction, entries: Sequence[AuditEntry]) -> AuditHead:
    """See ``Store.append_audit``."""
    for entry in entries:
        transaction.add_audit(entry)
    return transaction.audit_head()


def prune_audit(transaction: WriteTransaction, before: float, now: float, organization: str) -> bool:
    """See ``Store.prune_audit``: one slice of it; False when nothing is left to do."""
    connection = transaction.connection
    head = transaction.audit_head()
    transaction.flush()
    first = connection.execute(select(func.min(audit.c.seq))).scalar_one_or_none()
    if first is None:
        return False
    end = connection.execute(
        select(audit.c.seq).where(audit.c.seq >= first, audit.c.at >= before).order_by(audit.c.seq).limit(1)
    ).scalar_one_or_none()
    # The last record stays, so that the log never looks as if it had not begun.
    through = min(first + PRUNE_ROWS - 1, head.seq - 1, (end or head.seq) - 1)
    if through < first:
        return False
    cut = connection.execute(select(audit.c.hash).where(audit.c.seq == through)).scalar_one()
    connection.execute(insert(audit_checkpoints), {"seq": through, "hash": cut})
    connection.execute(delete(audit).where(audit.c.seq <= through))
    transaction.add_audit(pruned_entry(AuditHead(seq=through, hash=cut), through - first + 1, now, organization))
    return True


def pruned_entry(cut: AuditHead, records: int, now: float, organization: str) -> AuditEntry:
    """What the log says of its own beginning that is gone."""
    return AuditEntry(
        at=now,
        organization=organization,
        action=AuditAction.AUDIT_PRUNED,
        outcome=AuditOutcome.ALLOWED,
        rule="retention.audit",
        detail={"through": cut.seq, "hash": cut.hash.hex(), "records": records},
    )


def audit_head(connection: Connection) -> AuditHead:
    """The last record's place."""
    return _last(connection, audit) or audit_start(connection)


def audit_start(connection: Connection) -> AuditHead:
    """What the first kept record follows."""
    return _last(connection, audit_checkpoints) or GENESIS


def read_audit(
    connection: Connection, *, after_seq: int, limit: int, organization: str, since: float | None, until: float | None
) -> Sequence[AuditRecord]:
    """See ``Store.read_audit``."""
    query = select(audit).where(audit.c.seq > after_seq)
    if organization:
        query = query.where(audit.c.organization == organization)
    if since is not None:
        query = query.where(audit.c.at >= since)
    if until is not None:
        query = query.where(audit.c.at < until)
    return tuple(_decode(row) for row in connection.execute(query.order_by(audit.c.seq).limit(limit)))


def _last(connection: Connection, table: Table) -> AuditHead | None:
    last = select(func.max(table.c.seq)).scalar_subquery()
    row = connection.execute(select(table.c.seq, table.c.hash).where(table.c.seq == last)).one_or_none()
    return None if row is None else AuditHead(seq=row[0], hash=row[1])


def _decode(row: Sequence[Any]) -> AuditRecord:
    seq, at, organization, body, digest = row
    if not isinstance(body, str) or not isinstance(digest, bytes):
        raise UndecodableRow(f"audit record {seq}")
    return AuditRecord(seq=seq, at=at, organization=organization, body=body, hash=digest)
