"""The names that Shovey's clients see: complete, and never the end before the end."""

from __future__ import annotations

import pytest

from shovey_trio.core.jobs.model import Run, ToldEnd
from shovey_trio.core.jobs.states import TERMINAL_JOB_STATES, TERMINAL_RUN_STATES, JobState, RunState
from shovey_trio.shovey.protocol.names import JOB_NAMES, RUN_NAMES, exit_status, run_error
from shovey_trio.shovey.protocol.times import coarse_time, fine_time
from shovey_trio.shovey.protocol.views import run_view

# What knife goes on polling for; any other name of a job ends its wait.
POLLED = {"new", "voting", "running"}
# The states of a run that goiardi counts as not over.
LIVE = {"created", "running"}
SILENT = "no word from the node since "
LATE = ToldEnd(state=RunState.FAILED, cause="signalled", exit_code=None, signal=2, reported_at=9.0)


def run(state: RunState, **fields: object) -> Run:
    values: dict[str, object] = {
        "id": "r",
        "job_id": "j",
        "organization": "default",
        "node": "web-1",
        "created_at": 1.0,
        "updated_at": 2.0,
        "nonce": b"",
        **fields,
    }
    return Run(state=state, **values)  # type: ignore[arg-type]  # fields of several types


def test_every_state_has_a_name() -> None:
    assert set(RUN_NAMES) == set(RunState)
    assert set(JOB_NAMES) == set(JobState)


def test_job_is_called_polled_exactly_while_it_is_not_over() -> None:
    assert {state for state, name in JOB_NAMES.items() if name not in POLLED} == TERMINAL_JOB_STATES


def test_run_is_called_live_exactly_while_it_is_not_over() -> None:
    assert {state for state, name in RUN_NAMES.items() if name not in LIVE} == TERMINAL_RUN_STATES


@pytest.mark.parametrize(
    ("ended", "text"),
    [
        (run(RunState.SUCCEEDED, exit_code=0), ""),
        (run(RunState.RUNNING, detail="fine"), ""),
        (run(RunState.FAILED, exit_code=3), "exit status 3"),
        (run(RunState.FAILED, signal=9), "signal: 9"),
        (run(RunState.TIMED_OUT, cause="run_timeout"), "timed out: run timeout"),
        (run(RunState.CRASHED, cause="node_rebooted", detail="boot id changed"), "crashed: boot id changed"),
        (run(RunState.NACKED, cause="not_whitelisted"), "not whitelisted"),
        (run(RunState.UNAVAILABLE, cause="node_down"), "unavailable: node down"),
        (run(RunState.CANCELLED), ""),
        (run(RunState.CANCEL_UNPROVEN), "cancel unproven, the command may still run"),
        (run(RunState.CANCEL_UNPROVEN, cause="cancelled"), "cancel unproven, the command may still run"),
        (run(RunState.UNKNOWN, dispatched_at=5.0, unknown_since=9.0), f"{SILENT}1970-01-01T00:00:05Z"),
        (run(RunState.UNKNOWN, accepted_at=5.0, unknown_since=9.0), f"{SILENT}1970-01-01T00:00:09Z"),
        (
            run(RunState.CRASHED, detail="lost", late_report=LATE),
            "crashed: lost; the node said after that: failed, signal: 2",
        ),
        (run(RunState.SUCCEEDED, late_report=LATE), "the node said after that: failed, signal: 2"),
    ],
)
def test_error_says_what_the_name_does_not(ended: Run, text: str) -> None:
    assert run_error(ended) == text


@pytest.mark.parametrize(
    ("ended", "status"),
    [(run(RunState.FAILED, exit_code=300), 300), (run(RunState.FAILED, signal=9), 255), (run(RunState.RUNNING), 0)],
)
def test_exit_status_is_always_a_number(ended: Run, status: int) -> None:
    assert exit_status(ended) == status


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (None, "0001-01-01T00:00:00Z"),
        (1_795_319_156.0, "2026-11-22T03:45:56Z"),
        (1_795_319_156.5, "2026-11-22T03:45:56.5Z"),
        (1_795_319_156.869761, "2026-11-22T03:45:56.869761Z"),
    ],
)
def test_times_have_as_many_digits_as_they_need(at: float | None, text: str) -> None:
    assert fine_time(at) == text


def test_status_times_are_whole_seconds() -> None:
    assert coarse_time(1_795_319_156.9) == "2026-11-22T03:45:56Z"


def test_refusal_is_an_acknowledgement() -> None:
    refused = run_view(run(RunState.NACKED, finished_at=5.0))
    assert refused["ack_time"] == refused["end_time"] == "1970-01-01T00:00:05Z"
    assert run_view(run(RunState.UNAVAILABLE, finished_at=5.0))["ack_time"] == "0001-01-01T00:00:00Z"


def test_the_bytes_that_are_missing_are_a_number_only_where_some_are() -> None:
    assert "dropped_bytes" not in run_view(run(RunState.SUCCEEDED))
    assert run_view(run(RunState.SUCCEEDED, dropped_bytes=9))["dropped_bytes"] == 9
