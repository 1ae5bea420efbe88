"""Values to messages and back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from hypothesis import given
from hypothesis import strategies as st

from shovey_trio.core.errors import InvalidRequest
from shovey_trio.core.jobs.events import ReportOutcome, RunReport
from shovey_trio.core.jobs.model import (
    Job,
    LinkMode,
    OutputChunk,
    OutputExtent,
    Presence,
    ProofKind,
    Role,
    Run,
    StreamName,
    ToldEnd,
)
from shovey_trio.core.jobs.states import JobState, RunState
from shovey_trio.core.jobs.targeting import AllNodes, Match, Names, Tagged
from shovey_trio.core.trust.key_sets import KeySet, KeyState, PublicKey
from shovey_trio.core.trust.key_trust import PublishedKeys
from shovey_trio.core.trust.orders import OrderKind, SignedOrder
from shovey_trio.nursery.route import DOORBELL, STREAM
from shovey_trio.rpc import convert
from shovey_trio.shovey.kind import KIND
from shovey_trio.v1 import admin_service_pb2, agent_service_pb2, job_pb2, job_service_pb2, node_pb2, order_pb2

RESERVED_FOR_VOTES = {"JOB_STATE_VOTING", "RUN_STATE_READY", "RUN_STATE_WAS_READY"}

times = st.floats(0, 4e9).map(lambda at: round(at, 6))


@pytest.mark.parametrize(
    ("enums", "wrapper", "members"),
    [
        (convert.JOB_STATES, job_pb2.JobState, JobState),
        (convert.RUN_STATES, job_pb2.RunState, RunState),
        (convert.PROOFS, job_pb2.ProofKind, ProofKind),
        (convert.STREAMS, job_pb2.OutputStream, StreamName),
        (convert.PRESENCES, node_pb2.NodePresence, Presence),
        (convert.ORDER_KINDS, order_pb2.OrderKind, OrderKind),
        (convert.OUTCOMES, agent_service_pb2.ReportOutcome, ReportOutcome),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_both_sides_of_an_enum_have_the_same_members(enums: Any, wrapper: EnumTypeWrapper, members: Any) -> None:
    numbers = {enums.number(member) for member in members}
    left = {wrapper.Name(number) for number in set(wrapper.values()) - numbers - {0}}
    assert left <= RESERVED_FOR_VOTES
    assert {enums.member(number) for number in numbers} == set(members)
    assert enums.number(None) == 0
    assert enums.member(0) is None
    assert enums.member(9999) is None, "a number from the future"
    assert enums.members([0, 9999, *numbers]) == frozenset(members)


@pytest.mark.parametrize(
    ("enums", "wrapper", "words"),
    [
        (convert.ROUTES, job_pb2.Route, {STREAM, DOORBELL, KIND}),
        (convert.LINKS, node_pb2.LinkMode, {*LinkMode, KIND}),
    ],
    ids=["routes", "links"],
)
def test_every_kind_of_node_has_its_word_on_the_wire(
    enums: convert.WordMap, wrapper: EnumTypeWrapper, words: set[str]
) -> None:
    assert {enums.number(word) for word in words} == set(wrapper.values()) - {0}
    assert (enums.number(None), enums.number("a kind from the future")) == (0, 0)


def test_every_role_a_user_can_have_comes_back() -> None:
    for role in (Role.ADMIN, Role.OPERATOR, Role.VIEWER):
        assert convert.role_value(admin_service_pb2.Role.Value(f"ROLE_{role.name}")) is role
    for unknown in (0, 9999):
        with pytest.raises(InvalidRequest):
            convert.role_value(unknown)


@given(times)
def test_times_survive_to_the_microsecond(at: float) -> None:
    message = convert.timestamp(at)
    assert message is not None
    assert 0 <= message.nanos < 10**9
    assert convert.seconds(message) == pytest.approx(at, abs=1e-6)


def test_no_time_is_no_timestamp() -> None:
    assert convert.timestamp(None) is None


@given(st.floats(0, 366 * 86400))
def test_durations_survive_to_the_microsecond(value: float) -> None:
    assert convert.duration_seconds(convert.duration(value), field="x") == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("seconds", [-1, 366 * 86400 + 1, 10**11])
def test_a_duration_that_cannot_be_is_refused_by_name(seconds: int) -> None:
    with pytest.raises(InvalidRequest) as caught:
        convert.duration_seconds(Duration(seconds=seconds), field="run_timeout")
    assert caught.value.details["field"] == "run_timeout"


chunks = st.builds(
    OutputChunk,
    stream=st.sampled_from(StreamName),
    position=st.integers(0, 2**62),
    stream_offset=st.integers(0, 2**62),
    read_at=times,
    data=st.binary(max_size=50),
    dropped_before=st.integers(0, 2**62),
)
reports = st.builds(
    RunReport,
    run_id=st.text(max_size=9),
    outcome=st.sampled_from(ReportOutcome),
    exit_code=st.none() | st.integers(0, 255),
    signal=st.none() | st.integers(1, 64),
    cause=st.text(max_size=9),
    detail=st.text(max_size=9),
    proof=st.none() | st.sampled_from(ProofKind),
    started_at=st.none() | times,
    finished_at=st.none() | times,
    output_bytes=st.integers(0, 2**62),
    dropped_bytes=st.integers(0, 2**62),
)


@given(chunks)
def test_a_chunk_comes_back_as_it_went(chunk: OutputChunk) -> None:
    back = convert.chunk_value(convert.chunk_message(chunk))
    assert back is not None
    assert back.read_at == pytest.approx(chunk.read_at, abs=1e-6)
    assert replace(back, read_at=chunk.read_at) == chunk


@pytest.mark.parametrize("fields", [{"stream": 0}, {"position": -1}, {"stream_offset": -1}, {"stream": 9}])
def test_a_chunk_that_cannot_be_is_none(fields: dict[str, int]) -> None:
    assert convert.chunk_value(job_pb2.OutputChunk(**({"stream": 1} | fields))) is None  # type: ignore[arg-type]


@given(reports)
def test_a_report_comes_back_as_it_went_with_nothing_made_up(report: RunReport) -> None:
    back = convert.report_value(convert.report_message(report))
    assert back is not None
    for field in ("run_id", "outcome", "exit_code", "signal", "cause", "detail", "proof", "output_bytes"):
        assert getattr(back, field) == getattr(report, field)
    for field in ("started_at", "finished_at"):
        assert getattr(back, field) == pytest.approx(getattr(report, field), abs=1e-6)


def test_a_report_without_an_outcome_is_none_and_negative_sizes_are_nothing() -> None:
    assert convert.report_value(agent_service_pb2.RunReport(run_id="x")) is None
    message = agent_service_pb2.RunReport(run_id="x", outcome=1, output_bytes=-5, dropped_bytes=-1)  # type: ignore[arg-type]
    back = convert.report_value(message)
    assert back is not None
    assert (back.output_bytes, back.dropped_bytes) == (0, 0)


@pytest.mark.parametrize(
    ("target", "selection"),
    [
        ({"nodes": {"names": ["a", "b"]}}, Names(names=("a", "b"))),
        ({"nodes": {}}, Names(names=())),
        ({"all": True}, AllNodes()),
        ({"match": "web-*"}, Match(pattern="web-*")),
        ({"tags": {"tags": {"role": "web"}}}, Tagged(tags={"role": "web"})),
    ],
)
def test_a_target_is_a_selection(target: dict[str, Any], selection: object) -> None:
    assert convert.selection_value(job_service_pb2.Target(**target)) == selection


@pytest.mark.parametrize("target", [{}, {"all": False}, {"match": ""}, {"tags": {}}])
def test_a_target_that_selects_nothing_is_refused(target: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        convert.selection_value(job_service_pb2.Target(**target))


def test_a_run_shows_its_late_report_and_its_output() -> None:
    late = ToldEnd(state=RunState.FAILED, cause="exited", exit_code=0, signal=None, reported_at=9.0)
    run = Run(
        id="r",
        job_id="j",
        organization="o",
        node="n",
        state=RunState.CRASHED,
        exit_code=0,
        created_at=1.0,
        updated_at=2.0,
        nonce=b"",
        late_report=late,
    )
    message = convert.run_message(run, OutputExtent(stdout_bytes=3, stderr_bytes=4))
    assert message.HasField("exit_code"), "an exit code of zero is one"
    assert not message.HasField("signal")
    assert message.late_report.state == job_pb2.RUN_STATE_FAILED
    assert message.late_report.HasField("exit_code")
    assert (message.stdout_bytes, message.stderr_bytes) == (3, 4)
    assert not message.HasField("finished_at")


def test_a_job_shows_the_counts_it_is_given_or_else_its_own() -> None:
    job = Job(
        id="j",
        organization="o",
        command="c",
        quorum="1",
        run_timeout=1,
        kill_grace=1,
        created_by="user/x",
        created_at=1.0,
        updated_at=1.0,
        run_counts={RunState.SUCCEEDED: 2, RunState.FAILED: 0},
    )
    own = [(count.state, count.count) for count in convert.job_message(job).run_counts]
    assert own == [(job_pb2.RUN_STATE_SUCCEEDED, 2)]
    given_counts = convert.job_message(job, {RunState.RUNNING: 1}).run_counts
    assert [(count.state, count.count) for count in given_counts] == [(job_pb2.RUN_STATE_RUNNING, 1)]


def test_a_revoked_key_is_not_listed_for_who_cannot_read_the_signed_set() -> None:
    active = PublicKey(public_bytes=b"p" * 32, state=KeyState.ACTIVE, not_before=5)
    gone = PublicKey(public_bytes=b"q" * 32, state=KeyState.REVOKED, not_before=1, not_after=9)
    message = convert.keys_message(PublishedKeys(keys=KeySet(organization="o", serial=3, keys=(active, gone))))
    assert [key.public_key for key in message.keys] == [b"p" * 32]


def test_keys_and_signed_orders_come_back_as_they_went() -> None:
    active = PublicKey(public_bytes=b"p" * 32, state=KeyState.ACTIVE, not_before=5)
    retiring = PublicKey(public_bytes=b"q" * 32, state=KeyState.RETIRING, not_before=1, not_after=9)
    keys = KeySet(organization="o", serial=3, keys=(active, retiring))
    published = PublishedKeys(keys=keys, signed=b"s", root_public_key=b"r")
    assert convert.keys_value(convert.keys_message(published)) == published
    signed = SignedOrder(order=b"o", signature=b"s", key_id="k")
    assert convert.signed_order_value(convert.signed_order_message(signed)) == signed
