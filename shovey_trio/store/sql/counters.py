"""The store's own numbers."""

from __future__ import annotations

from typing import Final

from sqlalchemy import select

from shovey_trio.store.sql.tabled import put_row
from shovey_trio.store.sql.tables import counters
from shovey_trio.store.sql.transaction import WriteTransaction

EPOCH: Final = "epoch"
PROBE: Final = "probe"


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


def set_counter(transaction: WriteTransaction, name: str, value: int) -> None:
    """Stores one of the store's own numbers."""
    put_row(transaction, counters, {"name": name}, {"value": value})
