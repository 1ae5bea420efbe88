"""Output on its way to a Shovey server: every byte once, no character cut, the same pieces after a restart."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shovey_agent.run.runs import ExitCause
from shovey_agent.shovey.progress import Progress, ProgressFiles
from shovey_agent.shovey.reporter import end_of
from shovey_trio.core.jobs.events import ReportOutcome, RunReport
from shovey_trio.core.jobs.model import OutputChunk, ProofKind, StreamName
from shovey_trio.shovey.protocol.report import PutStatus, RunPut, StreamPut

_CHUNKS = st.lists(st.tuples(st.sampled_from(StreamName), st.binary(min_size=1, max_size=7)), max_size=20)
_TEXTS = st.lists(st.tuples(st.sampled_from(StreamName), st.text(min_size=1, max_size=4)), max_size=20)


def _cut(pieces: list[tuple[StreamName, bytes]]) -> list[StreamPut]:
    """What is sent of a run with this output, in order."""
    progress, sent, position = Progress(), [], 0
    for stream, data in pieces:
        chunk = OutputChunk(stream=stream, position=position, stream_offset=0, read_at=0.0, data=data)
        position += len(data)
        progress = progress.with_chunk(chunk)
        assert progress.position == position
        if progress.pending is not None:
            sent.append(progress.pending)
            progress = progress.delivered()
    for stream in StreamName:
        progress = progress.with_last(stream)
        assert progress.pending is not None
        sent.append(progress.pending)
        progress = progress.delivered()
    assert progress.ended == frozenset(StreamName)
    return sent


@given(pieces=_CHUNKS)
def test_every_byte_is_sent_once_under_numbers_without_gaps(pieces: list[tuple[StreamName, bytes]]) -> None:
    sent = _cut(pieces)
    for stream in StreamName:
        own = [piece for piece in sent if piece.stream is stream]
        assert b"".join(piece.data for piece in own) == b"".join(data for of, data in pieces if of is stream)
        assert [piece.seq for piece in own] == list(range(len(own)))
        assert [piece.is_last for piece in own] == [False] * (len(own) - 1) + [True]


@given(texts=_TEXTS, size=st.integers(1, 5))
def test_no_piece_begins_or_ends_inside_a_character(texts: list[tuple[StreamName, str]], size: int) -> None:
    pieces = [
        (stream, text.encode()[start : start + size])
        for stream, text in texts
        for start in range(0, len(text.encode()), size)
    ]
    for piece in _cut(pieces):
        piece.data.decode()


@given(pieces=_CHUNKS)
def test_what_is_written_down_is_read_back(pieces: list[tuple[StreamName, bytes]], tmp_path_factory: object) -> None:
    assert isinstance(tmp_path_factory, pytest.TempPathFactory)
    files = ProgressFiles(tmp_path_factory.mktemp("progress"))
    progress = Progress(running=True)
    for stream, data in pieces:
        chunk = OutputChunk(stream=stream, position=progress.position, stream_offset=0, read_at=0.0, data=data)
        progress = progress.with_chunk(chunk)
        files.save("r", progress)
        assert files.load("r") == progress
        progress = progress if progress.pending is None else progress.delivered()
    files.remove("r")
    assert files.load("r") == Progress()


@pytest.mark.parametrize("text", [b"", b"{", b'{"format": 2}', b"[]", b'{"format": 1}', b"\xff"])
def test_a_damaged_file_is_no_progress(tmp_path: Path, text: bytes) -> None:
    files = ProgressFiles(tmp_path)
    (tmp_path / "r.json").write_bytes(text)
    assert files.load("r") == Progress()


@pytest.mark.parametrize(
    ("report", "put"),
    [
        ({"cause": ExitCause.EXITED, "exit_code": 0}, RunPut(status=PutStatus.SUCCEEDED)),
        (
            {"cause": ExitCause.EXITED, "exit_code": 3},
            RunPut(status=PutStatus.FAILED, exit_status=3, error="exit status 3"),
        ),
        (
            {"cause": ExitCause.SIGNALLED, "signal": 9},
            RunPut(status=PutStatus.FAILED, exit_status=255, error="signal: killed"),
        ),
        (
            {"cause": ExitCause.TIMED_OUT, "signal": 15, "proof": ProofKind.EMPTY_SUBREAPER},
            RunPut(status=PutStatus.FAILED, error="Job r on node n timed out"),
        ),
        (
            {"cause": ExitCause.SPAWN_FAILED, "detail": "x: no"},
            RunPut(status=PutStatus.INVALID, error="fork/exec x: no"),
        ),
        (
            {"cause": ExitCause.NODE_REBOOTED},
            RunPut(status=PutStatus.KILLED, error="job r on node n was killed: node_rebooted"),
        ),
    ],
)
def test_an_end_is_told_in_schob_s_words(report: dict[str, object], put: RunPut) -> None:
    told = RunReport(run_id="r", outcome=ReportOutcome.EXITED, **report)  # type: ignore[arg-type] # a table
    assert end_of(told, node="n") == put
