"""The writer's thread side: a group of writes becomes one durable transaction.

The group is first tried together. Only if one of its writes cannot be applied is it rolled back and repeated with a
savepoint around each, so that the one gets its error and the others are committed; the good case pays for no savepoint.
A write may therefore be executed twice and must be a function of its transaction alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import outcome
from sqlalchemy import Connection

from shovey_trio.core.errors import ShoveyError, StoreCorrupt, StoreUnavailable
from shovey_trio.observe import failpoints
from shovey_trio.store.contract import Committed
from shovey_trio.store.sql.failures import Translate
from shovey_trio.store.sql.sequence import CommitSequence
from shovey_trio.store.sql.transaction import LiveKeys, WriteTransaction

# A write. It raises a ShoveyError only before it has changed anything; its caller gets it.
Work = Callable[[WriteTransaction], Any]
Outcome = outcome.Value[Any] | outcome.Error


@dataclass(frozen=True, slots=True, kw_only=True)
class CommittedGroup:
    """A group that is durable: each write's result or own error, in order, and what the commit touched."""

    outcomes: Sequence[Outcome]
    committed: Committed


class Committer:
    """Commits groups of writes on one connection; used by one thread at a time."""

    def __init__(self, connection: Connection, sequence: CommitSequence, translate: Translate) -> None:
        self._connection = connection
        self._sequence = sequence
        self._translate = translate
        self._live: LiveKeys = {}

    def commit(self, works: Sequence[Work]) -> CommittedGroup:
        """Applies and commits all writes.

        Raises:
            StoreUnavailable: nothing of the group was applied.
            StoreCorrupt: nothing of the group was applied, and nothing will be.
        """
        try:
            return self._commit_together(works)
        except Exception as error:  # noqa: BLE001  # of whatever kind, it concerns one write or all; sorted out below
            self._raise_if_shared(error)
            if len(works) == 1:
                return _nothing_but(self._translate(error))
        try:
            return self._commit_each(works)
        except Exception as error:
            self._raise_if_shared(error)
            raise

    def _commit_together(self, works: Sequence[Work]) -> CommittedGroup:
        with self._connection.begin():
            transaction = WriteTransaction(self._connection, self._sequence, self._live)
            outcomes = [_apply(work, transaction) for work in works]
            transaction.flush()
            failpoints.passing("store.commit.before")
        failpoints.passing("store.commit.after")
        transaction.remember()
        return CommittedGroup(outcomes=outcomes, committed=transaction.committed)

    def _commit_each(self, works: Sequence[Work]) -> CommittedGroup:
        outcomes: list[Outcome] = []
        jobs: dict[str, int] = {}
        runs: set[tuple[str, str]] = set()
        applied: list[WriteTransaction] = []
        with self._connection.begin():
            for work in works:
                transaction = WriteTransaction(self._connection, self._sequence, self._live)
                try:
                    with self._connection.begin_nested():
                        result = _apply(work, transaction)
                        transaction.flush()
                except Exception as error:  # noqa: BLE001  # handed to the caller of the write
                    self._raise_if_shared(error)
                    result = outcome.Error(self._translate(error))
                else:
                    applied.append(transaction)
                    jobs.update(transaction.committed.jobs)
                    runs.update(transaction.committed.runs)
                outcomes.append(result)
            failpoints.passing("store.commit.before")
        failpoints.passing("store.commit.after")
        for transaction in applied:
            transaction.remember()
        return CommittedGroup(outcomes=outcomes, committed=Committed(jobs=jobs, runs=runs))

    def _raise_if_shared(self, error: Exception) -> None:
        failure = self._translate(error)
        if isinstance(failure, StoreUnavailable | StoreCorrupt):
            raise failure from error


def _apply(work: Work, transaction: WriteTransaction) -> Outcome:
    try:
        return outcome.Value(work(transaction))
    except ShoveyError as error:
        return outcome.Error(error)


def _nothing_but(error: Exception) -> CommittedGroup:
    return CommittedGroup(outcomes=[outcome.Error(error)], committed=Committed(jobs={}, runs=frozenset()))
