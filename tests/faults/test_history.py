"""The judge of the fault tests itself: each rule must be able to be broken, or a clean table means nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from lab.history import JobRecord, Rule, RunResult, judge_events, judge_job
from shovey_trio.core.jobs.model import Job, Run
from shovey_trio.core.jobs.states import JobState, RunState
from shovey_trio.store.contract import StoredEvent, StoredJob, StoredRun
from shovey_trio.v1 import job_pb2 as pb

RUN_ID = "run-1"


def record(command: str = "quick", **changes: Any) -> JobRecord:
    values: dict[str, Any] = {"request_id": "r", "command": command, "nodes": ("web-1",), "job_id": "job-1", **changes}
    return JobRecord(**values)


def result(state: pb.RunState.ValueType, *, stdout: bytes = b"", ended: bool = True, **fields: Any) -> RunResult:
    run = pb.Run(id=RUN_ID, node="web-1", state=state, **fields)
    if ended:
        run.finished_at.GetCurrentTime()
    return RunResult(run=run, stdout=stdout, stderr=b"")


TRUE_OUTPUT = f"{RUN_ID} quick\n".encode()
GOOD = result(pb.RUN_STATE_SUCCEEDED, stdout=TRUE_OUTPUT, exit_code=0)


def broken(found: RunResult | None, *, starts: int = 1, alive: tuple[int, ...] = (), **changes: Any) -> set[Rule]:
    results = {} if found is None else {"web-1": found}
    violations = judge_job(record(**changes), results, starts=Counter({RUN_ID: starts}), alive={RUN_ID: alive})
    return {violation.rule for violation in violations}


def test_a_true_end_breaks_no_rule() -> None:
    assert broken(GOOD) == set()


def test_a_job_or_run_that_nobody_knows_any_more_is_lost() -> None:
    assert broken(None) == {Rule.JOB_LOST}
    assert broken(GOOD, nodes=("web-1", "web-2")) == {Rule.JOB_LOST}


def test_a_second_start_is_found_whatever_the_run_says() -> None:
    assert Rule.SECOND_START in broken(GOOD, starts=2)


def test_a_run_without_an_end_is_found() -> None:
    assert broken(result(pb.RUN_STATE_UNKNOWN, ended=False)) == {Rule.NO_END}


@pytest.mark.parametrize(
    ("found", "starts"),
    [
        (result(pb.RUN_STATE_FAILED, stdout=TRUE_OUTPUT, exit_code=1), 1),
        (result(pb.RUN_STATE_SUCCEEDED, stdout=TRUE_OUTPUT, exit_code=0), 0),
        (result(pb.RUN_STATE_SUCCEEDED, stdout=TRUE_OUTPUT), 1),
        (result(pb.RUN_STATE_CRASHED, cause="node_lost"), 1),
        (result(pb.RUN_STATE_UNAVAILABLE, cause="supervisor_lost"), 1),
        (result(pb.RUN_STATE_CANCELLED, proof=pb.PROOF_KIND_EMPTY_SUBREAPER), 1),
    ],
    ids=["wrong code", "never started", "no code", "unexplained", "started after all", "nobody cancelled"],
)
def test_an_end_that_is_not_the_true_one_is_found(found: RunResult, starts: int) -> None:
    assert Rule.UNTRUE_END in broken(found, starts=starts, excused=frozenset({"supervisor_lost"}))


def test_a_crash_that_the_fault_explains_is_none() -> None:
    found = result(pb.RUN_STATE_CRASHED, cause="supervisor_lost", stdout=TRUE_OUTPUT[:5])
    assert broken(found, excused=frozenset({"supervisor_lost"})) == set()


def test_a_crash_that_is_excused_for_never_having_started_needs_proof_and_ledger_to_say_so() -> None:
    excused = frozenset({"supervisor_lost/never_started"})
    never = result(pb.RUN_STATE_CRASHED, cause="supervisor_lost", proof=pb.PROOF_KIND_NEVER_STARTED)
    assert broken(never, starts=0, excused=excused) == set()
    assert Rule.UNTRUE_END in broken(never, starts=1, excused=excused)
    assert Rule.UNTRUE_END in broken(result(pb.RUN_STATE_CRASHED, cause="supervisor_lost"), starts=0, excused=excused)


@pytest.mark.parametrize("stdout", [TRUE_OUTPUT[:-1], TRUE_OUTPUT * 2, b""])
def test_a_byte_too_few_or_too_many_is_found(stdout: bytes) -> None:
    assert broken(result(pb.RUN_STATE_SUCCEEDED, stdout=stdout, exit_code=0)) == {Rule.OUTPUT}


def test_a_cancelled_run_that_lives_or_has_no_proof_is_found() -> None:
    proven = result(pb.RUN_STATE_CANCELLED, proof=pb.PROOF_KIND_EMPTY_SUBREAPER)
    asked: dict[str, Any] = {"command": "hostile", "cancel_asked": True}
    assert broken(proven, **asked) == set()
    assert broken(proven, alive=(1,), **asked) == {Rule.SURVIVOR}
    assert broken(result(pb.RUN_STATE_CANCELLED), **asked) == {Rule.UNPROVEN}
    never = result(pb.RUN_STATE_CANCELLED, proof=pb.PROOF_KIND_NEVER_STARTED)
    assert broken(never, starts=1, **asked) == {Rule.UNPROVEN}


RUN = Run(
    id=RUN_ID, job_id="job-1", organization="default", node="web-1", created_at=1.0, updated_at=1.0, nonce=bytes(16)
)
JOB = Job(
    id="job-1",
    organization="default",
    command="quick",
    quorum="0",
    run_timeout=1.0,
    kill_grace=1.0,
    created_by="user/admin",
    created_at=1.0,
    updated_at=1.0,
)
EVENTS: list[StoredEvent] = [
    StoredRun(seq=3, run=replace(RUN, state=RunState.RUNNING)),
    StoredRun(seq=5, run=replace(RUN, state=RunState.FAILED)),
    StoredJob(seq=8, job=replace(JOB, state=JobState.COMPLETE)),
]


def test_a_watcher_that_was_given_every_event_once_breaks_no_rule() -> None:
    assert judge_events(record(watched_from=2, watched=[3, 5, 8]), EVENTS) == []
    assert judge_events(record(watched_from=4, watched=[5, 8]), EVENTS) == []


@pytest.mark.parametrize("watched", [[3, 8], [3, 5, 5, 8], [5, 3, 8], [3, 5]])
def test_an_event_missed_doubled_or_out_of_order_is_found(watched: list[int]) -> None:
    found = judge_events(record(watched_from=2, watched=watched), EVENTS)
    assert [violation.rule for violation in found] == [Rule.WATCH]


def test_a_second_terminal_state_is_found() -> None:
    healed = StoredRun(seq=9, run=replace(RUN, state=RunState.SUCCEEDED))
    assert Rule.TWO_ENDS in {violation.rule for violation in judge_events(record(), [*EVENTS, healed])}
    assert Rule.TWO_ENDS in {violation.rule for violation in judge_events(record(), [*EVENTS, EVENTS[-1]])}
    assert Rule.TWO_ENDS in {violation.rule for violation in judge_events(record(), EVENTS[:-1])}
