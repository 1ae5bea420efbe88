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
    LegacyCancelOver,
    LegacyEnded,
    LegacyHeard,
    LegacyKeyRefused,
    LegacyOutputOver,
    NodeAttached,
    NodeKnows,
    NodeRefused,
    NodeSilent,
    NodeStarted,
    OrderSent,
    RunEvent,
    SendStart,
)
from shovey_trio.core.jobs.model import Route, Run, StreamName
from shovey_trio.core.jobs.run_machine import handle
from shovey_trio.core.jobs.states import RunState
from shovey_trio.shovey.protocol.report import (
    RunPut,
    RunStatus,
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
        OrderSent(route=Route.LEGACY, agent_instance="", expires_at=900),
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
    run = _play(_say(_say(_sent(), "running"), status, exit_status=exit_status, error=error), LegacyOutputOver())
    assert (run.state, run.cause, run.exit_code, run.signal) == end
    assert run.detail == error
    assert run.finished_at == 5.0
    assert run.late_report is None


def test_a_run_is_not_terminal_before_the_last_of_its_output() -> None:
    run = _say(_say(_sent(), "running"), "succeeded")
    assert run.state is RunState.RUNNING
    assert run.late_report is not None
    assert run.late_report.state is RunState.SUCCEEDED
    meanwhile = _play(run, NodeSilent(since=1, reason="x"), CancelAsked(by="a"), LegacyCancelOver(), LegacyHeard())
    assert meanwhile is run
    assert _say(run, "failed", exit_status=1) is run


def test_refusals_end_a_run_that_was_not_accepted() -> None:
    assert _say(_sent(), "nacked", error="command x not in whitelist").state is RunState.NACKED
    missing = _say(_sent(), "invalid", error="fork/exec /nonexistent/cmd: no such file or directory")
    assert (missing.state, missing.cause) == (RunState.INVALID, "spawn_failed")
    unverified = _say(_sent(), "invalid", error="Command id j running 'x' could not be verified! crypto/rsa: …")
    assert (unverified.state, unverified.cause) == (RunState.INVALID, "bad_signature")


def test_an_invalid_report_of_an_accepted_run_says_only_that_the_command_failed() -> None:
    run = _play(_say(_say(_sent(), "running"), "invalid", error="fork/exec x: no such file"), LegacyOutputOver())
    assert (run.state, run.cause) == (RunState.FAILED, "spawn_failed")


def test_an_invalid_report_never_changes_a_run_that_has_ended() -> None:
    ended = _play(_say(_say(_sent(), "running"), "succeeded"), LegacyOutputOver())
    assert _say(ended, "invalid", error="could not be verified!") is ended
    assert _say(ended, "invalid", error="fork/exec x: no such file") is ended


def test_later_truth_is_kept_beside_the_end_once() -> None:
    ended = _play(_sent(), CancelAsked(by="a"), LegacyCancelOver())
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
    run = _play(_say(run, status, exit_status=130), LegacyOutputOver())
    assert run.state is RunState.CANCEL_UNPROVEN
    assert run.proof is None


def test_a_command_that_succeeded_before_its_cancel_came_has_succeeded() -> None:
    run = _play(_say(_sent(), "running"), CancelAsked(by="user/a"))
    assert _play(_say(run, "succeeded"), LegacyOutputOver()).state is RunState.SUCCEEDED


def test_a_cancel_that_nobody_answers_ends_unproven() -> None:
    for run in (_sent(), _say(_sent(), "running"), _play(_sent(), NodeSilent(since=1, reason="x"))):
        assert _play(run, CancelAsked(by="user/a"), LegacyCancelOver()).state is RunState.CANCEL_UNPROVEN


def test_a_run_that_the_deadline_cancelled_has_timed_out() -> None:
    run = _play(_say(_sent(), "running"), CancelAsked(by=BY_DEADLINE))
    assert _play(_say(run, "killed"), LegacyOutputOver()).state is RunState.TIMED_OUT


def test_a_wrong_key_is_answered_with_another_start_unless_the_node_has_the_run() -> None:
    sent = _sent()
    assert handle(sent, LegacyKeyRefused(), 9.0).effects == (SendStart(),)
    accepted = _say(sent, "running")
    assert handle(accepted, LegacyKeyRefused(), 9.0).effects == ()
    assert handle(_play(sent, CancelAsked(by="a")), LegacyKeyRefused(), 9.0).effects == ()


def test_a_sign_of_life_heals_what_was_accepted_and_nothing_else() -> None:
    running = _play(_say(_sent(), "running"), NodeSilent(since=1, reason="heartbeat_lost"))
    assert running.state is RunState.UNKNOWN
    assert _play(running, LegacyHeard()).state is RunState.RUNNING
    maybe_sent = _play(_sent(), NodeSilent(since=1, reason="heartbeat_lost"))
    assert _play(maybe_sent, LegacyHeard()) is maybe_sent


def test_an_agent_that_replaces_a_schob_changes_nothing_of_its_runs() -> None:
    running = _say(_sent(), "running")
    assert _play(running, NodeAttached(agent_instance="new", knows=NodeKnows.NOTHING)) is running


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
    assert event_of(RunPut(status=RunStatus.CREATED), 1.0) is None
    assert isinstance(event_of(RunPut(status=RunStatus.RUNNING), 1.0), NodeStarted)
    assert isinstance(event_of(RunPut(status=RunStatus.NACKED), 1.0), NodeRefused)
    assert isinstance(event_of(replace(RunPut(status=RunStatus.FAILED), exit_status=1), 1.0), LegacyEnded)
