"""Commit sequences: nothing in the store depends on who numbers, as long as the numbers of a job grow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from sqlalchemy import Connection, create_engine, select

from shovey_trio.core.jobs.model import StreamName
from shovey_trio.core.jobs.states import JobState, RunState
from shovey_trio.store.contract import StoredEvent, StoredJob, StoredOutput, StoredRun
from shovey_trio.store.sql.committer import Committer
from shovey_trio.store.sql.counters import set_counter
from shovey_trio.store.sql.job_reads import read_events, snapshot_job
from shovey_trio.store.sql.job_writes import append_output, create_job, write_job, write_run
from shovey_trio.store.sql.retention import hide_jobs, sweep_jobs
from shovey_trio.store.sql.sequence import CommitSequence
from shovey_trio.store.sql.tables import counters, metadata
from shovey_trio.store.sql.transaction import WriteTransaction
from shovey_trio.store.sqlite.sequence import FileSequence
from tests.store.conftest import NOW, Make

# Here the number is a key of all jobs' rows, so each job has a range of its own: the later job the lower one.
RANGE = 1_000_000


class JobCounters:
    """A counter for each job, raised in the commit, as a store for several controllers will have it."""

    def __init__(self) -> None:
        self.asked: list[Sequence[int]] = []

    def number(self, transaction: WriteTransaction, job_pks: Sequence[int]) -> list[int]:
        self.asked.append(job_pks)
        connection = transaction.connection
        last = {pk: _counter(connection, pk) for pk in job_pks}
        numbers = []
        for pk in job_pks:
            last[pk] += 1
            numbers.append((100 - pk) * RANGE + last[pk])
        for pk, value in last.items():
            set_counter(transaction, f"job {pk}", value)
        return numbers

    def keep(self, transaction: WriteTransaction) -> None:
        """Counters outlive the rows."""


def _counter(connection: Connection, job_pk: int) -> int:
    return connection.execute(select(counters.c.value).where(counters.c.name == f"job {job_pk}")).scalar() or 0


@pytest.fixture
def connection() -> Iterator[Connection]:
    engine = create_engine("sqlite://")
    metadata.create_all(engine)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def _story(connection: Connection, job_id: str, after: int = 0) -> Sequence[StoredEvent]:
    with connection.begin():
        return read_events(connection, job_id, after_seq=after, limit=100, include_output=True)


@pytest.mark.parametrize("sequence", [FileSequence(), JobCounters()], ids=lambda it: type(it).__name__)
def test_a_job_reads_in_the_order_of_its_writes_and_on_from_any_of_them(
    connection: Connection, sequence: CommitSequence, make: Make
) -> None:
    committer = Committer(connection, sequence, lambda error: error)
    (one, [run]), (two, [other]) = make.job(), make.job()
    committer.commit(
        [lambda t, job=job, its=its: create_job(t, job, its, None, b"") for job, its in ((one, [run]), (two, [other]))]
    )
    done = replace(run, state=RunState.SUCCEEDED, finished_at=NOW)
    ended = replace(one, state=JobState.COMPLETE, finished_at=NOW)
    group = committer.commit(
        [
            lambda t: append_output(t, run, make.chunks((StreamName.STDOUT, b"1"), (StreamName.STDOUT, b"2"))),
            lambda t: append_output(t, other, make.chunks((StreamName.STDOUT, b"other"))),
            lambda t: write_run(t, done),
            lambda t: write_job(t, ended),
        ]
    )
    story = _story(connection, one.id)
    assert [type(event) for event in story] == [StoredJob, StoredRun, StoredOutput, StoredOutput, StoredRun, StoredJob]
    numbers = [event.seq for event in story]
    assert numbers == sorted(set(numbers))
    for place, number in enumerate(numbers):
        assert list(_story(connection, one.id, after=number)) == list(story[place + 1 :])
    with connection.begin():
        picture = snapshot_job(connection, "default", one.id)
    assert picture is not None
    assert picture.seq == numbers[-1] == group.committed.jobs[one.id]
    assert group.committed.jobs[two.id] == _story(connection, two.id)[-1].seq


@pytest.mark.parametrize("sequence", [FileSequence(), JobCounters()], ids=lambda it: type(it).__name__)
def test_a_commit_that_is_repeated_write_by_write_numbers_only_what_is_applied(
    connection: Connection, sequence: CommitSequence, make: Make
) -> None:
    committer = Committer(connection, sequence, lambda error: error)
    job, runs = make.job(["a", "b"])
    committer.commit([lambda t: create_job(t, job, runs, None, b"")])

    def broken(transaction: WriteTransaction) -> None:
        write_run(transaction, replace(runs[0], cause="never applied"))
        raise RuntimeError("a bug")

    group = committer.commit(
        [
            lambda t: write_run(t, replace(runs[0], attempts=1)),
            broken,
            lambda t: write_run(t, replace(runs[1], attempts=1)),
        ]
    )
    story = _story(connection, job.id)
    first = story[0].seq
    assert [event.seq for event in story] == list(range(first, first + 5))
    assert group.committed.jobs == {job.id: first + 4}


def test_a_sequence_is_asked_once_for_a_whole_group(connection: Connection, make: Make) -> None:
    sequence = JobCounters()
    committer = Committer(connection, sequence, lambda error: error)
    (one, [run]), (two, [other]) = make.job(), make.job()
    works = [
        lambda t: create_job(t, one, [run], None, b""),
        lambda t: create_job(t, two, [other], None, b""),
        lambda t: write_run(t, replace(run, attempts=1)),
    ]
    committer.commit(works)
    assert sequence.asked == [[1, 1, 2, 2, 1]]
    committer.commit([lambda _: None])
    assert len(sequence.asked) == 1


def test_numbers_of_a_job_that_is_deleted_in_the_same_commit_are_not_used_again(
    connection: Connection, make: Make
) -> None:
    committer = Committer(connection, FileSequence(), lambda error: error)
    job, runs = make.job(state=JobState.COMPLETE, finished_at=NOW - 1)
    deleted = committer.commit(
        [lambda t: create_job(t, job, runs, None, b""), lambda t: hide_jobs(t, NOW, 10), sweep_jobs, sweep_jobs]
    )
    later, its = make.job()
    committer.commit([lambda t: create_job(t, later, its, None, b"")])
    assert _story(connection, later.id)[0].seq == deleted.committed.jobs[job.id] + 1
