"""One sequence for all jobs of a file: each new row goes to the end of its table, whose key the number is.

SQLite lets one transaction write at a time, so a sequence for all costs no waiting. The first number of a transaction
is looked up in it: the ends of two primary keys, and a counter of what was deleted. So a rolled-back transaction
leaves no gap and no duplicate, and a second process that writes to the same file (offline administration) cannot
disturb it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import bindparam, func, select

from shovey_trio.store.sql.counters import set_counter
from shovey_trio.store.sql.prepared import Prepared
from shovey_trio.store.sql.tables import counters, events, output
from shovey_trio.store.sql.transaction import WriteTransaction

_COUNTER: Final = "sequence"
_LAST: Final = Prepared(
    select(
        select(func.max(events.c.seq)).scalar_subquery(),
        select(func.max(output.c.seq)).scalar_subquery(),
        select(counters.c.value).where(counters.c.name == bindparam("name")).scalar_subquery(),
    )
)


class FileSequence:
    """See ``store.sql.sequence.CommitSequence``."""

    def number(self, transaction: WriteTransaction, job_pks: Sequence[int]) -> range:
        first = _last(transaction) + 1
        return range(first, first + len(job_pks))

    def keep(self, transaction: WriteTransaction) -> None:
        set_counter(transaction, _COUNTER, _last(transaction))


def _last(transaction: WriteTransaction) -> int:
    numbers = _LAST.find(transaction.connection, name=_COUNTER)
    assert numbers is not None
    return max(number or 0 for number in numbers)
