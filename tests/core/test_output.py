"""The output log: what is written comes out again, wherever it is cut, and nothing in it can do harm."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shovey_trio.core.jobs.model import OutputChunk, StreamName
from shovey_trio.core.jobs.output import MERGE_WINDOW_S, Cut, LogCursor, cut_chunks
from shovey_trio.core.jobs.output_frames import HEADER, MAX_BODY, STDERR, STDOUT, encode_gap, encode_header

_STREAM = {STDOUT: StreamName.STDOUT, STDERR: StreamName.STDERR}
_EVERYTHING = 1 << 40

_pieces = st.lists(
    st.one_of(
        st.tuples(st.sampled_from([STDOUT, STDERR]), st.binary(min_size=1, max_size=40)),
        st.tuples(st.integers(0, 50), st.integers(1, 50)),  # a hole
    ),
    max_size=20,
)
_Pieces = list[tuple[int, bytes] | tuple[int, int]]


def _log(pieces: _Pieces, *, spacing: float = 0.0) -> bytes:
    log = b""
    for index, (first, second) in enumerate(pieces):
        at = 1000.0 + index * spacing
        if isinstance(second, bytes):
            log += encode_header(first, len(second), at) + second
        else:
            log += encode_gap(stdout=first, stderr=second, read_at=at)
    return log


# Stream, offset in the stream, byte, and what was left out right before it.
_Byte = tuple[StreamName, int, int, int]


def _bytes_by_position(pieces: _Pieces) -> dict[int, _Byte]:
    """The log's meaning, written down the slow way."""
    found: dict[int, _Byte] = {}
    hole = 0
    offsets = {StreamName.STDOUT: 0, StreamName.STDERR: 0}
    for first, second in pieces:
        if isinstance(second, bytes):
            for byte in second:
                stream = _STREAM[first]
                found[sum(offsets.values())] = (stream, offsets[stream], byte, hole)
                offsets[stream] += 1
                hole = 0
        else:
            hole += first + second
    return found


def _flatten(chunks: tuple[OutputChunk, ...]) -> dict[int, _Byte]:
    return {
        chunk.position + index: (chunk.stream, chunk.stream_offset + index, byte, 0 if index else chunk.dropped_before)
        for chunk in chunks
        for index, byte in enumerate(chunk.data)
    }


@given(_pieces)
def test_log_reads_back_as_it_was_written(pieces: _Pieces) -> None:
    cut = cut_chunks(_log(pieces), LogCursor(), position=0, limit=_EVERYTHING)
    assert _flatten(cut.chunks) == _bytes_by_position(pieces)
    assert cut.cursor.file_offset == len(_log(pieces))
    assert not cut.damaged


@given(_pieces, st.integers(0, 900), st.integers(1, 200))
def test_reading_from_any_position_gives_the_same_bytes_at_the_same_places(
    pieces: _Pieces, position: int, limit: int
) -> None:
    expected = [item for item in sorted(_bytes_by_position(pieces).items()) if item[0] >= position][:limit]
    cut = cut_chunks(_log(pieces), LogCursor(), position=position, limit=limit)
    assert sorted(_flatten(cut.chunks).items()) == expected


@given(_pieces, st.integers(1, 60))
def test_going_on_from_the_cursor_misses_nothing_and_repeats_nothing(pieces: _Pieces, limit: int) -> None:
    log = _log(pieces)
    cursor, position = LogCursor(), 0
    found: dict[int, _Byte] = {}
    while True:
        cut = cut_chunks(log[cursor.file_offset :], cursor, position=position, limit=limit)
        fresh = _flatten(cut.chunks)
        assert not found.keys() & fresh.keys()
        found |= fresh
        if not cut.chunks:
            break
        cursor, position = cut.cursor, cut.chunks[-1].position + len(cut.chunks[-1].data)
    assert found == _bytes_by_position(pieces)


@given(_pieces, st.data())
def test_log_cut_short_anywhere_ends_at_its_last_whole_frame(pieces: _Pieces, data: st.DataObject) -> None:
    log = _log(pieces)
    length = data.draw(st.integers(0, len(log)))
    first = cut_chunks(log[:length], LogCursor(), position=0, limit=_EVERYTHING)
    assert not first.damaged
    assert first.cursor.file_offset <= length
    # The rest arrives.
    position = first.chunks[-1].position + len(first.chunks[-1].data) if first.chunks else 0
    second = cut_chunks(log[first.cursor.file_offset :], first.cursor, position=position, limit=_EVERYTHING)
    assert _flatten(first.chunks) | _flatten(second.chunks) == _bytes_by_position(pieces)


@given(st.binary(max_size=400), st.integers(0, 100), st.integers(1, 100))
def test_garbage_is_survived(log: bytes, position: int, limit: int) -> None:
    cut = cut_chunks(log, LogCursor(), position=position, limit=limit)
    assert cut.cursor.file_offset <= len(log)
    assert sum(len(chunk.data) for chunk in cut.chunks) <= limit


def test_frame_of_an_unknown_kind_or_size_is_damage_and_ends_the_log_there() -> None:
    good = encode_header(STDOUT, 2, 1.0) + b"ok"
    for bad in (
        encode_header(0, 1, 1.0) + b"x",
        encode_header(9, 1, 1.0) + b"x",
        encode_header(STDOUT, 0, 1.0),
        encode_header(STDOUT, MAX_BODY + 1, 1.0) + b"x" * (MAX_BODY + 1),
        bytes(HEADER.size),
    ):
        cut = cut_chunks(good + bad + good, LogCursor(), position=0, limit=_EVERYTHING)
        assert cut.damaged
        assert b"".join(chunk.data for chunk in cut.chunks) == b"ok"
        assert cut.cursor.file_offset == len(good)


def test_neighbours_of_one_stream_become_one_chunk_only_when_close_in_time() -> None:
    pieces: _Pieces = [(STDOUT, b"a"), (STDOUT, b"b"), (STDERR, b"c"), (STDOUT, b"d")]
    near = cut_chunks(_log(pieces, spacing=MERGE_WINDOW_S / 10), LogCursor(), position=0, limit=_EVERYTHING)
    assert [chunk.data for chunk in near.chunks] == [b"ab", b"c", b"d"]
    far = cut_chunks(_log(pieces, spacing=MERGE_WINDOW_S * 2), LogCursor(), position=0, limit=_EVERYTHING)
    assert [chunk.data for chunk in far.chunks] == [b"a", b"b", b"c", b"d"]
    assert near.chunks[0].read_at == 1000.0


def test_chunk_never_exceeds_the_largest_message() -> None:
    log = b"".join(encode_header(STDOUT, 60_000, 1.0) + bytes(60_000) for _ in range(5))
    cut = cut_chunks(log, LogCursor(), position=0, limit=_EVERYTHING)
    assert [len(chunk.data) for chunk in cut.chunks] == [60_000] * 5


def test_the_chunk_behind_a_hole_says_how_much_is_missing_and_positions_do_not_count_it() -> None:
    pieces: _Pieces = [(STDOUT, b"head"), (100, 20), (STDOUT, b"tail")]
    cut = cut_chunks(_log(pieces), LogCursor(), position=4, limit=_EVERYTHING)
    tail = OutputChunk(
        stream=StreamName.STDOUT, position=4, stream_offset=4, read_at=1000.0, data=b"tail", dropped_before=120
    )
    end = LogCursor(file_offset=len(_log(pieces)), stdout_bytes=8, dropped_bytes=120)
    assert cut == Cut(chunks=(tail,), cursor=end)
    inside = cut_chunks(_log(pieces), LogCursor(), position=5, limit=_EVERYTHING)
    assert [(chunk.data, chunk.dropped_before) for chunk in inside.chunks] == [(b"ail", 0)]
