"""The numbers of stored events and output, which are the order of commits and what resume tokens point into.

A transaction asks for them when it sends its rows, at its end: a sequence that has to lock what it counts holds the
lock for the commit alone. What is promised of the numbers holds within a job (``store.contract``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from shovey_trio.store.sql.transaction import WriteTransaction


class CommitSequence(Protocol):
    """Numbers rows. Keeps nothing between two calls: a transaction may be rolled back, and others may write too."""

    def number(self, transaction: WriteTransaction, job_pks: Sequence[int]) -> Iterable[int]:
        """A number for each of some rows, by the job it belongs to: above all earlier ones of that job, in order."""
        ...

    def keep(self, transaction: WriteTransaction) -> None:
        """Makes sure that no number is used again, whatever rows are deleted after this."""
        ...
