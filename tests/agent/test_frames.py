"""Frames and the launcher's messages: what goes in comes out, however it is cut, and nothing else does."""

from __future__ import annotations

import math
import struct

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from lab.limits import within
from shovey_agent.desk.desk import Declined, Ending, Known, Taken, Verdict, Voided
from shovey_agent.desk.server import believable_time
from shovey_agent.desk.wire import (
    DeskProtocolError,
    FrameDecoder,
    FrameStream,
    FrameTooLarge,
    parse,
    run_message,
    run_value,
    verdict_message,
    verdict_value,
)
from shovey_agent.run.runs import ExitCause, KnownRun, RunPhase
from shovey_trio.core.jobs.events import ReportOutcome, RunReport
from shovey_trio.core.jobs.model import ProofKind
from shovey_trio.core.trust.orders import MAX_CLOCK_SKEW, OrderKind, RefusalReason
from shovey_trio.v1 import launcher_pb2 as pb

MOST = 64
TIMES = st.floats(min_value=0, max_value=4e9)
# A report's times are whole microseconds on the way.
REPORT_TIMES = st.integers(0, 2**38).map(lambda ticks: ticks / 64)
WORDS = st.text(st.characters(codec="utf-8"), max_size=20)
EXITS = st.builds(
    RunReport,
    run_id=st.just("r"),
    outcome=st.sampled_from(ReportOutcome),
    cause=st.sampled_from(ExitCause),
    detail=WORDS,
    exit_code=st.none() | st.integers(0, 255),
    signal=st.none() | st.integers(1, 64),
    started_at=st.none() | REPORT_TIMES,
    finished_at=REPORT_TIMES,
    proof=st.none() | st.sampled_from(ProofKind),
    output_bytes=st.integers(0, 2**40),
    dropped_bytes=st.integers(0, 2**40),
)


def runs() -> st.SearchStrategy[KnownRun]:
    common = {
        "run_id": st.just("r"),
        "job_id": WORDS,
        "accepted_at": TIMES,
        "command": WORDS,
        "cancelling": st.booleans(),
        "started_at": st.none() | TIMES,
    }
    live = st.builds(KnownRun, **common, phase=st.sampled_from([RunPhase.ACCEPTED, RunPhase.RUNNING]))
    ended = st.builds(KnownRun, **common, phase=st.just(RunPhase.FINISHED), exit=EXITS, reported=st.booleans())
    return live | ended


VERDICTS: st.SearchStrategy[Verdict] = st.one_of(
    st.builds(Taken, run=runs()),
    st.builds(Known, run=runs()),
    st.builds(Voided, run_id=WORDS),
    st.builds(Ending, run_id=WORDS),
    st.builds(
        Declined,
        reason=st.sampled_from(RefusalReason),
        detail=WORDS,
        run_id=WORDS,
        order_kind=st.none() | st.sampled_from(OrderKind),
    ),
)


def wire(frame: bytes) -> bytes:
    return struct.pack("!I", len(frame)) + frame


@given(st.lists(st.binary(min_size=1, max_size=MOST), max_size=8), st.data())
def test_frames_come_out_as_they_went_in_however_the_bytes_are_cut(frames: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(map(wire, frames))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    decoder = FrameDecoder(MOST)
    found: list[bytes] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        decoder.feed(stream[start:end])
        while (frame := decoder.next_frame()) is not None:
            found.append(frame)
    assert found == frames


@given(st.integers(MOST + 1, 2**32 - 1) | st.just(0), st.binary(max_size=200))
def test_a_length_out_of_bounds_is_refused_before_its_frame_is_there(length: int, rest: bytes) -> None:
    decoder = FrameDecoder(MOST)
    decoder.feed(struct.pack("!I", length) + rest)
    with pytest.raises(FrameTooLarge):
        decoder.next_frame()


@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_or_refused(frame: bytes) -> None:
    try:
        request = parse(pb.LauncherRequest, frame)
    except DeskProtocolError:
        return
    assert isinstance(request, pb.LauncherRequest)


@given(runs())
def test_a_run_is_the_same_on_both_sides(run: KnownRun) -> None:
    assert run_value(parse(pb.SpooledRun, run_message(run).SerializeToString())) == run


@given(VERDICTS)
def test_a_verdict_is_the_same_on_both_sides(verdict: Verdict) -> None:
    assert verdict_value(parse(pb.OrderVerdict, verdict_message(verdict).SerializeToString())) == verdict


def test_words_that_are_no_utf_8_do_not_keep_a_run_from_being_told() -> None:
    report = RunReport(run_id="r", outcome=ReportOutcome.EXITED, detail="directory /\udcff", finished_at=1.0)
    run = KnownRun(run_id="r", job_id="j", accepted_at=0.0, phase=RunPhase.FINISHED, exit=report)
    told = run_value(run_message(run))
    assert told.exit is not None
    assert told.exit.detail == "directory /?"


@pytest.mark.parametrize(
    "message",
    [
        pb.OrderVerdict(),
        pb.OrderVerdict(kind=pb.ORDER_VERDICT_KIND_TAKEN, run=pb.SpooledRun(run_id="r")),
        pb.OrderVerdict(kind=pb.ORDER_VERDICT_KIND_REFUSED, reason="no such word"),
    ],
)
def test_a_verdict_that_the_contract_does_not_know_is_refused(message: pb.OrderVerdict) -> None:
    with pytest.raises(DeskProtocolError):
        verdict_value(message)


@given(st.floats(allow_nan=False, allow_infinity=False), TIMES)
def test_a_claimed_time_moves_this_node_s_clock_within_bounds_alone(claimed: float, own: float) -> None:
    believed = believable_time(claimed, own)
    assert abs(believed - own) <= MAX_CLOCK_SKEW + 1e-6
    assert abs(claimed - own) > MAX_CLOCK_SKEW or believed == claimed


@pytest.mark.parametrize("claimed", [math.nan, math.inf, -math.inf])
def test_a_claimed_time_that_is_no_time_is_refused(claimed: float) -> None:
    with pytest.raises(DeskProtocolError):
        believable_time(claimed, 1.0)


@within(30)
async def test_a_frame_is_sent_whole_though_its_sender_is_cancelled() -> None:
    ours, theirs = trio.socket.socketpair()
    frame = bytes(range(256)) * 4096  # more than the socket holds: sending waits for the other side
    async with trio.SocketStream(ours) as left, trio.SocketStream(theirs) as right:
        sender, receiver = FrameStream(left, most=1), FrameStream(right, most=len(frame))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sender.send, frame)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel(reason="in the middle of a frame")
            with trio.CancelScope(shield=True):
                assert await receiver.receive() == frame
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sender.send, b"next")
            assert await receiver.receive() == b"next"
