"""Decisions about whole jobs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shovey_trio.core.errors import IllegalTransition
from shovey_trio.core.jobs.job_machine import admit, complete, crash, request_cancel
from shovey_trio.core.jobs.model import Job
from shovey_trio.core.jobs.states import TERMINAL_RUN_STATES, JobState, RunState

NEW = Job(
    id="job",
    organization="default",
    command="work",
    quorum="75%",
    run_timeout=60,
    kill_grace=10,
    created_by="user/ops",
    created_at=1.0,
    updated_at=1.0,
    run_total=4,
)
RUNNING = admit(NEW, 3, 2.0)


def test_a_job_with_its_quorum_runs() -> None:
    assert (RUNNING.state, RUNNING.updated_at, RUNNING.finished_at) == (JobState.RUNNING, 2.0, None)


def test_a_job_without_its_quorum_ends_with_both_figures() -> None:
    job = admit(NEW, 2, 2.0)
    assert (job.state, job.cause, job.finished_at) == (JobState.QUORUM_FAILED, "quorum_not_met", 2.0)
    assert job.detail == "2 of 4 nodes are up, 3 needed"


def test_a_cancel_is_noted_once_and_not_after_the_end() -> None:
    asked = request_cancel(RUNNING, 3.0)
    assert (asked.cancel_requested, asked.updated_at) == (True, 3.0)
    assert request_cancel(asked, 4.0) is asked
    ended = complete(RUNNING, {RunState.SUCCEEDED: 4}, 5.0)
    assert request_cancel(ended, 6.0) is ended


@pytest.mark.parametrize(
    ("cancel", "counts", "state"),
    [
        (False, {RunState.SUCCEEDED: 3, RunState.FAILED: 1}, JobState.COMPLETE),
        (False, {RunState.CANCELLED: 1, RunState.SUCCEEDED: 3}, JobState.COMPLETE),
        (True, {RunState.CANCELLED: 1, RunState.SUCCEEDED: 3}, JobState.CANCELLED),
        (True, {RunState.CANCEL_UNPROVEN: 1}, JobState.CANCELLED),
        (True, {RunState.SUCCEEDED: 4}, JobState.COMPLETE),
        (False, {RunState.TIMED_OUT: 1, RunState.CRASHED: 3}, JobState.TIMED_OUT),
    ],
)
def test_the_runs_and_who_asked_decide_how_a_job_ended(
    cancel: bool, counts: dict[RunState, int], state: JobState
) -> None:
    job = complete(request_cancel(RUNNING, 3.0) if cancel else RUNNING, counts, 9.0)
    assert (job.state, job.run_counts, job.finished_at) == (state, counts, 9.0)


@given(st.dictionaries(st.sampled_from(sorted(TERMINAL_RUN_STATES)), st.integers(0, 9)), st.booleans())
def test_any_set_of_ended_runs_ends_the_job_once(counts: dict[RunState, int], cancel: bool) -> None:
    job = complete(request_cancel(RUNNING, 3.0) if cancel else RUNNING, counts, 9.0)
    assert job.is_terminal
    with pytest.raises(IllegalTransition):
        complete(job, counts, 10.0)
    with pytest.raises(IllegalTransition):
        crash(job, "x", counts, 10.0)


def test_a_job_whose_own_task_failed_is_crashed_with_the_kind_of_failure() -> None:
    job = crash(RUNNING, "KeyError", {RunState.CRASHED: 4}, 9.0)
    assert (job.state, job.cause, job.detail) == (JobState.CRASHED, "internal_error", "KeyError")
