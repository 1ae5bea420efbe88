"""The pure parts of the command line: lines, harmless text, plain values, what a watched job amounts to."""

from __future__ import annotations

import io
import re
from itertools import pairwise

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from shovey_trio.cli.operator.job_feed import Positions
from shovey_trio.cli.operator.job_view import JobView, describe_run, run_proven_gone
from shovey_trio.cli.operator.labelled_output import Line, LineCollector
from shovey_trio.cli.operator.live import LiveDisplay
from shovey_trio.cli.text.plain import plain_message
from shovey_trio.cli.text.terminal_text import LONGEST_LINE, LineAssembler, printable
from shovey_trio.cli.text.times import age, elapsed
from shovey_trio.core.errors import Exit
from shovey_trio.core.jobs.states import RunState
from shovey_trio.v1 import job_pb2, node_pb2
from shovey_trio.v1.job_service_pb2 import JobChanged, JobSnapshot, RunChanged, RunOutput, WatchJobResponse

OUT, ERR = job_pb2.OUTPUT_STREAM_STDOUT, job_pb2.OUTPUT_STREAM_STDERR


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """``data`` in pieces, cut at ``places`` (modulo its length)."""
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in pairwise(edges)]


@given(st.binary(max_size=300), st.lists(st.integers(min_value=0, max_value=300), max_size=8))
def test_lines_do_not_depend_on_how_the_chunks_fell(data: bytes, places: list[int]) -> None:
    assembler = LineAssembler()
    lines = [line for piece in cut(data, places) for line in assembler.feed(piece)]
    rest = assembler.flush()
    assert lines == data.split(b"\n")[:-1]
    assert b"".join(rest) == data.split(b"\n")[-1]
    assert assembler.flush() == []


def test_an_endless_line_comes_in_pieces_and_loses_nothing() -> None:
    assembler = LineAssembler()
    data = bytes(range(97, 123)) * 5000
    pieces = [line for piece in cut(data, list(range(0, len(data), 999))) for line in assembler.feed(piece)]
    assert len(assembler.partial) <= LONGEST_LINE
    assert b"".join([*pieces, *assembler.flush()]) == data


@given(st.text(max_size=60) | st.binary(max_size=60))
def test_nothing_that_a_terminal_obeys_is_left(text: str | bytes) -> None:
    shown = printable(text)
    assert not any(ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0 for character in shown)
    assert printable(shown) == shown


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"plain", "plain"),
        ("grün – ok".encode(), "grün – ok"),
        (b"\x1b[1;31mred\x1b[0m", "red"),
        (b"\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        (b"10%\r50%\r100%", "100%"),
        (b"windows line\r", "windows line"),
        (b"a\tb", "a   b"),
        (b"bell\x07", "bell\ufffd"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        ("abc\u202edcba", "abc\ufffddcba"),
    ],
)
def test_text_of_others_is_made_harmless(raw: bytes | str, shown: str) -> None:
    assert printable(raw) == shown


def test_streams_of_one_node_do_not_mix_within_a_line() -> None:
    lines: list[Line] = []
    collector = LineCollector(lines.append)
    for data, stream, at in ((b"one ", OUT, 1), (b"two\n", ERR, 2), (b"three\nfour", OUT, 3)):
        collector.feed("web-1", job_pb2.OutputChunk(stream=stream, data=data, read_at=Timestamp(seconds=at)))
    collector.finish("web-2")
    assert collector.partial("web-1") == b"four"
    collector.finish("web-1")
    assert [(line.data, line.is_stderr, line.read_at) for line in lines] == [
        (b"two", True, 2.0),
        (b"one three", False, 1.0),
        (b"four", False, 3.0),
    ]


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20)), max_size=12))
def test_of_overlapping_chunks_each_byte_is_given_out_once(spans: list[tuple[int, int]]) -> None:
    source = bytes(range(60))
    given_out = b""
    shown = Positions()
    for wanted, length in spans:
        start = min(wanted, shown.end("n"))  # output has no gaps
        fresh = shown.take("n", job_pb2.OutputChunk(position=start, data=source[start : start + length]))
        if fresh is not None:
            assert fresh.position == len(given_out)
            given_out += fresh.data
    assert given_out == source[: shown.end("n")]


def test_plain_values_have_every_field_and_the_event_that_happened() -> None:
    run = job_pb2.Run(node="web-1", state=job_pb2.RUN_STATE_CANCEL_UNPROVEN, stdout_bytes=2**40)
    run.started_at.FromSeconds(1_700_000_000)
    plain = plain_message(WatchJobResponse(resume_token="7", run_changed=RunChanged(run=run)))
    assert list(plain) == ["resume_token", "run_changed"]
    assert set(plain["run_changed"]["run"]) == {field.name for field in job_pb2.Run.DESCRIPTOR.fields}
    assert plain["run_changed"]["run"]["state"] == "cancel_unproven"
    assert plain["run_changed"]["run"]["stdout_bytes"] == 2**40
    assert plain["run_changed"]["run"]["started_at"] == "2023-11-14T22:13:20.000000Z"
    assert plain["run_changed"]["run"]["exit_code"] is None
    assert plain["run_changed"]["run"]["proof"] is None


def test_states_from_the_future_are_numbers_and_maps_are_sorted() -> None:
    node = node_pb2.Node(tags={"b": "2", "a": "1"})
    node.status.presence = 77  # type: ignore[assignment]  # a newer server may know more states
    plain = plain_message(node)
    assert plain["status"]["presence"] == "77"
    assert list(plain["tags"]) == ["a", "b"]


def a_run(node: str, state: int, **fields: object) -> job_pb2.Run:
    return job_pb2.Run(node=node, state=state, **fields)  # type: ignore[arg-type]  # tables of tests


def watched(job_state: int, *runs: job_pb2.Run) -> JobView:
    view = JobView()
    view.apply(WatchJobResponse(snapshot=JobSnapshot(job=job_pb2.Job(id="j"), runs=runs, complete=True)))
    view.apply(WatchJobResponse(job_changed=JobChanged(job=job_pb2.Job(id="j", state=job_state))))  # type: ignore[arg-type]
    return view


@pytest.mark.parametrize("state", [state for state in RunState if state is not RunState.SUCCEEDED])
def test_only_success_of_every_run_is_exit_0(state: RunState) -> None:
    good = a_run("a", job_pb2.RUN_STATE_SUCCEEDED)
    bad = a_run("b", job_pb2.RunState.Value(f"RUN_STATE_{state.name}"))
    assert watched(job_pb2.JOB_STATE_COMPLETE, good).exit() is Exit.OK
    assert watched(job_pb2.JOB_STATE_COMPLETE, good, bad).exit() is Exit.RUNS_FAILED


@pytest.mark.parametrize("state", ["CANCELLED", "TIMED_OUT", "CRASHED"])
def test_a_job_that_was_not_completed_is_no_success(state: str) -> None:
    view = watched(job_pb2.JobState.Value(f"JOB_STATE_{state}"), a_run("a", job_pb2.RUN_STATE_SUCCEEDED))
    assert view.exit() is Exit.RUNS_FAILED


def test_a_change_that_nobody_sees_is_no_change() -> None:
    view = watched(job_pb2.JOB_STATE_RUNNING, a_run("a", job_pb2.RUN_STATE_RUNNING))
    same = a_run("a", job_pb2.RUN_STATE_RUNNING, stdout_bytes=5)
    assert view.apply(WatchJobResponse(run_changed=RunChanged(run=same))) == []
    cancelling = a_run("a", job_pb2.RUN_STATE_RUNNING, cancelling=True)
    assert view.apply(WatchJobResponse(run_changed=RunChanged(run=cancelling))) == [cancelling]
    assert not view.ended


@pytest.mark.parametrize(
    ("run", "text", "gone"),
    [
        (a_run("a", job_pb2.RUN_STATE_FAILED, exit_code=3, cause="exited"), "failed (exit 3)", True),
        (a_run("a", job_pb2.RUN_STATE_FAILED, signal=9), "failed (signal 9)", True),
        (a_run("a", job_pb2.RUN_STATE_NACKED, cause="not_whitelisted"), "nacked (not_whitelisted)", True),
        (a_run("a", job_pb2.RUN_STATE_RUNNING, cancelling=True), "running (cancelling)", False),
        (a_run("a", job_pb2.RUN_STATE_CRASHED, cause="node_rebooted"), "crashed (node_rebooted)", False),
        (
            a_run("a", job_pb2.RUN_STATE_CANCEL_UNPROVEN, cause="cancelled"),
            "cancel_unproven (the command may still run)",
            False,
        ),
        (
            a_run("a", job_pb2.RUN_STATE_CANCEL_UNPROVEN, late_report=job_pb2.LateReport()),
            "cancel_unproven",
            False,
        ),
        (
            a_run("a", job_pb2.RUN_STATE_CANCELLED, cause="cancelled", proof=job_pb2.PROOF_KIND_EMPTY_CGROUP),
            "cancelled (proof: empty_cgroup)",
            True,
        ),
    ],
)
def test_a_run_is_described_in_a_few_words(run: job_pb2.Run, text: str, gone: bool) -> None:
    assert describe_run(run) == text
    assert run_proven_gone(run) is gone


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0.0s"), (0.44, "0.4s"), (9.94, "9.9s"), (12.9, "12s"), (185, "3m05s"), (7800, "2h10m"), (349_200, "4d01h")],
)
def test_durations_are_shown_in_two_units(seconds: float, text: str) -> None:
    assert elapsed(seconds) == text


def test_a_time_that_is_absent_has_no_age() -> None:
    assert age(Timestamp(), now=1e9) == ""
    assert age(Timestamp(seconds=940), now=1000.0) == "1m00s ago"


def test_the_live_view_of_a_thousand_nodes_fits_the_screen_and_shows_failures_first() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system=None, width=100, height=24)
    view = JobView()
    runs = [a_run(f"n-{number:04}", job_pb2.RUN_STATE_SUCCEEDED) for number in range(1000)]
    runs[777] = a_run("n-0777", job_pb2.RUN_STATE_FAILED, exit_code=1)
    job = job_pb2.Job(id="j", command="c", state=job_pb2.JOB_STATE_RUNNING)
    with LiveDisplay(view, console=console) as display:
        event = WatchJobResponse(snapshot=JobSnapshot(job=job, runs=runs, complete=True))
        display.show(event, view.apply(event))
        output = RunOutput(node="n-0777", chunk=job_pb2.OutputChunk(stream=OUT, data=b"[bold]not markup[/bold]\n"))
        display.show(WatchJobResponse(output=output), [])
        display.tick()
        drawn = file.getvalue()
    assert "n-0777 | [bold]not markup[/bold]" in drawn
    assert "failed (exit 1)" in drawn
    assert drawn.count("n-0") <= 24, "one for each row at most"
    assert re.search(r"… and 980 more +999 succeeded +1 failed", drawn)
