"""What a schob's reports mean, from every report that was recorded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shovey_trio.core.errors import InvalidRequest
from shovey_trio.core.jobs.events import (
    BY_DEADLINE,
    CancelAsked,
    CancelUnproven,
    EndTold,
    InternalFailure,
    NodeHeard,
    NodeRefused,
    NodeSilent,
    NodeStarted,
    OrderSent,
    OrderUnusable,
    OutputOver,
    RunEvent,
    SendStart,
)
from shovey_trio.core.jobs.model import Run, StreamName
from shovey_trio.core.jobs.run_machine import handle
from shovey_trio.core.jobs.states import RunState
from shovey_trio.shovey.kind import KIND
from shovey_trio.shovey.protocol.report import (
    PutStatus,
    RunPut,
    StreamPut,
    event_of,
    output_bytes,
    output_text,
    parse_run_put,
    parse_stream_put,
    run_put_body,
    stream_put_body,
)

_PUTS = [
    json.loads(line) for line in Path(__file__).parents[1].joinpath("golden/schob-put.jsonl").read_text().splitlines()
]
_RUN_PUTS = [put["request_body"] for put in _PUTS if put["request_line"].startswith("PUT /shovey/jobs/")]
_STREAM_PUTS = [put["request_body"] for put in _PUTS if put["request_line"].startswith("PUT /shovey/stream/")]


def _sent() -> Run:
    return _play(
        Run(id="r", job_id="j", organization="o", node="n", created_at=1, updated_at=1, nonce=b"n" * 16),
        OrderSent(route=KIND, agent_instance="", expires_at=900),
    )


def _play(run: Run, *events: RunEvent) -> Run:
    for now, event in enumerate(events, start=2):
        run = handle(run, event, float(now)).run
    return run


def _say(run: Run, status: str, *, exit_status: int = 0, error: str = "") -> Run:
    event = event_of(parse_run_put({"status": status, "exit_status": exit_status, "error": error}), 5.0)
    return run if event is None else _play(run, event)


@pytest.mark.parametrize("body", _RUN_PUTS)
def test_recorded_reports_are_understood_and_rebuilt(body: str) -> None:
    fields = json.loads(body)
    put = parse_run_put(fields)
    assert run_put_body(put, node=fields["node_name"], run_id=fields["run_id"]) == body.encode()


@pytest.mark.parametrize("body", _STREAM_PUTS, ids=range(len(_STREAM_PUTS)))
def test_recorded_output_is_understood_and_rebuilt(body: str) -> None:
    fields = json.loads(body)
    put = parse_stream_put(fields)
    rebuilt = stream_put_body(put, node=fields["node_name"], run_id=fields["run_id"])
    assert json.loads(rebuilt) == fields


@pytest.mark.parametrize(
    ("status", "exit_status", "error", "end"),
    [
        ("succeeded", 0, "", (RunState.SUCCEEDED, "exited", 0, None)),
        ("failed", 3, "exit status 3", (RunState.FAILED, "exited", 3, None)),
        ("failed", 255, "signal: killed", (RunState.FAILED, "signalled", None, 9)),
        ("failed", 255, "signal: segmentation fault (core dumped)", (RunState.FAILED, "signalled", None, 11)),
        ("failed", 255, "signal: something new", (RunState.FAILED, "signalled", None, None)),
        ("failed", 0, "Job j on node n timed out", (RunState.TIMED_OUT, "timed_out", None, None)),
        ("shutdown", 0, "shovey client was shutting down", (RunState.CRASHED, "agent_stopped", None, None)),
        ("killed", 0, "job j on node n seems to have been …", (RunState.CRASHED, "agent_killed", None, None)),
        ("bad_fh", 0, "", (RunState.CRASHED, "output_lost", None, None)),
        ("cancelled", 0, "", (RunState.CANCEL_UNPROVEN, "cancelled", None, None)),
    ],
)
def test_an_end_means_this(
    status: str, exit_status: int, error: str, end: tuple[RunState, str, int | None, int | None]
) -> None:
    run = _play(_say(_say(_sent(), "running"), status, exit_status=exit_status, error=error), OutputOver())
    assert (run.state, run.cause, run.exit_code, run.signal) == end
    assert run.detail == error
    assert run.finished_at == 5.0
    assert (run.held_end, run.late_report) == (None, None)


def test_a_run_is_not_terminal_before_the_last_of_its_output() -> None:
    run = _say(_say(_sent(), "running"), "succeeded")
    assert run.state is RunState.RUNNING
    assert run.late_report is None
    assert run.held_end is not None
    assert run.held_end.state is RunState.SUCCEEDED
    meanwhile = _play(run, NodeSilent(since=1, reason="x"), CancelAsked(by="a"), CancelUnproven(), NodeHeard())
    assert meanwhile is run
    assert _say(run, "failed", exit_status=1) is run


def test_refusals_end_a_run_that_was_not_accepted() -> None:
    assert _say(_sent(), "nacked", error="command x not in whitelist").state is RunState.NACKED
    missing = _say(_sent(), "invalid", error="fork/exec /nonexistent/cmd: no such file or directory")
    assert (missing.state, missing.cause) == (RunState.INVALID, "spawn_failed")
    unverified = _say(_sent(), "invalid", error="Command id j running 'x' could not be verified! crypto/rsa: …")
    assert (unverified.state, unverified.cause) == (RunState.INVALID, "bad_signature")


def test_an_invalid_report_of_an_accepted_run_says_only_that_the_command_failed() -> None:
    run = _play(_say(_say(_sent(), "running"), "invalid", error="fork/exec x: no such file"), OutputOver())
    assert (run.state, run.cause) == (RunState.FAILED, "spawn_failed")


def test_later_truth_is_kept_beside_the_end_once() -> None:
    ended = _play(_sent(), CancelAsked(by="a"), CancelUnproven())
    assert ended.state is RunState.CANCEL_UNPROVEN
    late = _say(ended, "failed", exit_status=7)
    assert late.state is RunState.CANCEL_UNPROVEN
    assert late.late_report is not None
    assert (late.late_report.state, late.late_report.exit_code) == (RunState.FAILED, 7)
    assert _say(late, "succeeded") is late
    assert _say(ended, "running") is ended


@pytest.mark.parametrize("status", ["killed", "shutdown", "cancelled", "failed", "bad_fh"])
def test_a_run_that_was_asked_to_cancel_ends_unproven_whatever_word_the_node_uses(status: str) -> None:
    run = _play(_say(_sent(), "running"), CancelAsked(by="user/a"))
    run = _play(_say(run, status, exit_status=130), OutputOver())
    assert run.state is RunState.CANCEL_UNPROVEN
    assert run.proof is None


def test_a_command_that_succeeded_before_its_cancel_came_has_succeeded() -> None:
    run = _play(_say(_sent(), "running"), CancelAsked(by="user/a"))
    assert _play(_say(run, "succeeded"), OutputOver()).state is RunState.SUCCEEDED


def test_a_cancel_that_nobody_answers_ends_unproven() -> None:
    for run in (_sent(), _say(_sent(), "running"), _play(_sent(), NodeSilent(since=1, reason="x"))):
        assert _play(run, CancelAsked(by="user/a"), CancelUnproven()).state is RunState.CANCEL_UNPROVEN


def test_a_run_that_the_deadline_cancelled_has_timed_out() -> None:
    run = _play(_say(_sent(), "running"), CancelAsked(by=BY_DEADLINE))
    assert _play(_say(run, "killed"), OutputOver()).state is RunState.TIMED_OUT


def test_a_wrong_key_is_answered_with_another_start_unless_the_node_has_the_run() -> None:
    sent = _sent()
    assert handle(sent, OrderUnusable(), 9.0).effects == (SendStart(),)
    accepted = _say(sent, "running")
    assert handle(accepted, OrderUnusable(), 9.0).effects == ()
    assert handle(_play(sent, CancelAsked(by="a")), OrderUnusable(), 9.0).effects == ()


def test_a_sign_of_life_heals_what_was_accepted_and_nothing_else() -> None:
    running = _play(_say(_sent(), "running"), NodeSilent(since=1, reason="heartbeat_lost"))
    assert running.state is RunState.UNKNOWN
    assert _play(running, NodeHeard()).state is RunState.RUNNING
    maybe_sent = _play(_sent(), NodeSilent(since=1, reason="heartbeat_lost"))
    assert _play(maybe_sent, NodeHeard()) is maybe_sent


def test_a_bug_in_the_controller_does_not_lose_an_end_that_is_held() -> None:
    held = _say(_say(_sent(), "running"), "failed", exit_status=3)
    crashed = _play(held, InternalFailure(detail="bug"))
    assert (crashed.state, crashed.held_end, crashed.late_report) == (RunState.CRASHED, None, held.held_end)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("output", None, "invalid output"),
        ("output_type", None, "invalid output type"),
        ("output_type", "zork", "invalid output type"),
        ("output_type", "both", "invalid output type"),
        ("is_last", None, "invalid is_last"),
        ("is_last", "true", "invalid is_last"),
        ("seq", None, "invalid seq"),
        ("seq", "3", "invalid seq"),
        ("seq", -3, "invalid seq"),
        ("seq", 1.5, "invalid seq"),
        ("seq", True, "invalid seq"),
        ("seq", 2**31, "invalid seq"),
    ],
)
def test_output_that_is_not_of_the_protocol_is_refused_in_goiardi_s_words(
    field: str, value: object, message: str
) -> None:
    body: dict[str, Any] = {"output": "x", "output_type": "stdout", "is_last": False, "seq": 1, field: value}
    with pytest.raises(InvalidRequest) as refused:
        parse_stream_put(body)
    assert refused.value.message == message


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"status": 1},
        {"status": "zork"},
        {"status": "failed", "exit_status": "3"},
        {"status": "failed", "exit_status": 1.5},
        {"status": "failed", "exit_status": float("nan")},
        {"status": "failed", "exit_status": float("inf")},
        {"status": "failed", "exit_status": 2**40},
        {"status": "failed", "exit_status": True},
        {"status": "failed", "error": 3},
    ],
)
def test_a_report_that_is_not_of_the_protocol_is_refused(body: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest):
        parse_run_put(body)


@given(data=st.binary(max_size=300))
def test_any_output_of_our_own_agent_survives_json_byte_for_byte(data: bytes) -> None:
    put = StreamPut(stream=StreamName.STDOUT, seq=0, is_last=True, data=data)
    assert parse_stream_put(json.loads(stream_put_body(put, node="n", run_id="r"))) == put


@given(text=st.text(st.characters(codec=None), max_size=50))
def test_any_json_text_becomes_bytes(text: str) -> None:
    assert output_text(output_bytes(text)).encode("utf-8", "surrogateescape") == output_bytes(text)


def test_a_long_error_is_cut_and_clean() -> None:
    put = parse_run_put({"status": "failed", "error": "\ud800" + "x" * 10_000})
    assert len(put.error) == 4096
    put.error.encode()


def test_created_says_nothing() -> None:
    assert event_of(RunPut(status=PutStatus.CREATED), 1.0) is None
    assert isinstance(event_of(RunPut(status=PutStatus.RUNNING), 1.0), NodeStarted)
    assert isinstance(event_of(RunPut(status=PutStatus.NACKED), 1.0), NodeRefused)
    assert isinstance(event_of(replace(RunPut(status=PutStatus.FAILED), exit_status=1), 1.0), EndTold)
