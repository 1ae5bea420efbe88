"""The store's own numbers."""

from __future__ import annotations

from typing import Final

from sqlalchemy import func, select

from shovey_trio.store.sql.tabled import put_row
from shovey_trio.store.sql.tables import audit, counters, jobs, node_statuses
from shovey_trio.store.sql.transaction import WriteTransaction

EPOCH: Final = "epoch"
PROBE: Final = "probe"
# The last time that history was deleted by, or could have been.
CLOCK: Final = "clock"


def next_epoch(transaction: WriteTransaction, now: float) -> int:
    """See ``Store.next_epoch``."""
    stored = transaction.connection.execute(
        select(counters.c.value).where(counters.c.name == EPOCH)
    ).scalar_one_or_none()
    epoch = max((stored or 0) + 1, int(now))
    set_counter(transaction, EPOCH, epoch)
    return epoch


def probe(transaction: WriteTransaction, now: float) -> None:
    """See ``Store.probe``. Another value each time: a transaction that changes nothing would not touch the disk."""
    set_counter(transaction, PROBE, int(now * 1000))


def believe_clock(transaction: WriteTransaction, now: float, at_most_ahead: float) -> bool:
    """See ``Store.believe_clock``."""
    known = select(counters.c.value).where(counters.c.name == CLOCK)
    last = transaction.connection.execute(known).scalar_one_or_none()
    if last is None:
        newest = select(func.max(jobs.c.created_at)).union_all(
            select(func.max(node_statuses.c.since)), select(func.max(audit.c.at))
        )
        last = max((at for at in transaction.connection.execute(newest).scalars() if at is not None), default=now)
    believed = now <= last + at_most_ahead
    set_counter(transaction, CLOCK, int(max(now, last) if believed else last))
    return believed


def set_counter(transaction: WriteTransaction, name: str, value: int) -> None:
    """Stores one of the store's own numbers."""
    put_row(transaction, counters, {"name": name}, {"value": value})
