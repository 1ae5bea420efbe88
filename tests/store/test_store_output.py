"""Contract: output."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shovey_trio.core.jobs.model import OutputExtent, StreamName
from shovey_trio.core.jobs.states import RunState
from shovey_trio.store.contract import OutputPage, Store
from shovey_trio.store.sql.failures import StoreConflict

from .conftest import Make

OUT, ERR = StreamName
PIECES = ((OUT, b"out-one\n"), (ERR, b"err-one\n"), (ERR, b"\x00\xff"), (OUT, b"out-two\n"), (ERR, b"e"))


async def test_output_is_read_back_byte_for_byte(store: Store, make: Make) -> None:
    job, [run] = make.job()
    await store.create_job(job, [run], None)
    chunks = make.chunks(*PIECES)
    await store.append_output(run, chunks[:2])
    await store.append_output(run, chunks[2:])
    assert list(await store.read_output(run.id, stream=None, offset=0, limit=1000)) == chunks
    for stream in StreamName:
        expected = [chunk for chunk in chunks if chunk.stream is stream]
        assert list(await store.read_output(run.id, stream=stream, offset=0, limit=1000)) == expected


@pytest.mark.parametrize("stream", [None, OUT, ERR])
async def test_reading_from_any_offset_gives_the_rest_exactly(
    store: Store, make: Make, stream: StreamName | None
) -> None:
    job, [run] = make.job()
    await store.create_job(job, [run], None)
    await store.append_output(run, make.chunks(*PIECES))
    whole = b"".join(data for name, data in PIECES if stream in (None, name))
    for offset in range(len(whole) + 3):
        chunks = await store.read_output(run.id, stream=stream, offset=offset, limit=1000)
        assert b"".join(chunk.data for chunk in chunks) == whole[offset:]
        if chunks:
            assert (chunks[0].position if stream is None else chunks[0].stream_offset) == offset


async def test_cut_chunk_keeps_both_offsets_true(store: Store, make: Make) -> None:
    job, [run] = make.job()
    await store.create_job(job, [run], None)
    chunks = make.chunks((OUT, b"abc"), (ERR, b"defgh"))
    await store.append_output(run, chunks)
    [cut] = await store.read_output(run.id, stream=None, offset=5, limit=100)
    assert cut == replace(chunks[1], position=5, stream_offset=2, data=b"fgh")


async def test_what_was_left_out_before_a_chunk_is_kept_and_told_only_at_its_beginning(
    store: Store, make: Make
) -> None:
    job, [run] = make.job()
    await store.create_job(job, [run], None)
    [head, tail] = make.chunks((OUT, b"head"), (ERR, b"tail"))
    await store.append_output(run, [head, replace(tail, dropped_before=2**40)])
    found = [await store.read_output(run.id, stream=None, offset=offset, limit=100) for offset in (0, 4, 5)]
    assert [[chunk.dropped_before for chunk in chunks] for chunks in found] == [[0, 2**40], [2**40], [0]]


async def test_reading_stops_at_the_limit_but_gives_one_chunk(store: Store, make: Make) -> None:
    job, [run] = make.job()
    await store.create_job(job, [run], None)
    chunks = make.chunks((OUT, b"aaaa"), (OUT, b"bbbb"), (OUT, b"cccc"))
    await store.append_output(run, chunks)
    assert list(await store.read_output(run.id, stream=None, offset=0, limit=8)) == chunks[:2]
    assert list(await store.read_output(run.id, stream=None, offset=0, limit=11)) == chunks[:2]
    assert list(await store.read_output(run.id, stream=None, offset=4, limit=1)) == chunks[1:2]
    [cut] = await store.read_output(run.id, stream=OUT, offset=6, limit=2)
    assert cut.data == b"bb"


async def test_a_page_says_whether_more_is_there_and_whether_more_may_come(store: Store, make: Make) -> None:
    job, [run] = make.job()
    await store.create_job(job, [run], None)
    chunks = make.chunks((OUT, b"aaaa"), (OUT, b"bbbb"), (ERR, b"cc"))
    await store.append_output(run, chunks)
    for stream, offset, limit, more in (
        (None, 0, 8, True),
        (None, 0, 10, False),
        (None, 6, 2, True),
        (OUT, 0, 8, False),
    ):
        page = await store.read_output_page(run.id, stream=stream, offset=offset, limit=limit)
        assert (page.more, page.ended) == (more, False), (stream, offset, limit)
    await store.write_run(replace(run, state=RunState.SUCCEEDED, finished_at=9.0))
    page = await store.read_output_page(run.id, stream=None, offset=4, limit=4)
    assert page == OutputPage(chunks=(chunks[1],), more=True, ended=True)
    page = await store.read_output_page(run.id, stream=None, offset=10, limit=4)
    assert page == OutputPage(chunks=(), more=False, ended=True)


async def test_extent_counts_each_stream(store: Store, make: Make) -> None:
    job, runs = make.job(["web-1", "web-2", "web-3"])
    await store.create_job(job, runs, None)
    assert await store.output_extent(runs[0].id) == OutputExtent()
    written = make.chunks()
    for piece in PIECES:
        written += make.chunks(piece, after=written)
        await store.append_output(runs[0], written[-1:])
        sizes = {stream: sum(len(c.data) for c in written if c.stream is stream) for stream in StreamName}
        extent = OutputExtent(stdout_bytes=sizes[OUT], stderr_bytes=sizes[ERR])
        assert await store.output_extent(runs[0].id) == extent
    await store.append_output(runs[1], make.chunks((ERR, b"xy")))
    assert await store.output_extents([run.id for run in runs]) == {
        runs[0].id: extent,
        runs[1].id: OutputExtent(stderr_bytes=2),
        runs[2].id: OutputExtent(),
    }


async def test_unknown_run_has_no_output(store: Store) -> None:
    assert await store.output_extent("nobody") == OutputExtent()
    assert await store.output_extents([]) == {}
    assert list(await store.read_output("nobody", stream=None, offset=0, limit=10)) == []
    page = await store.read_output_page("nobody", stream=None, offset=0, limit=10)
    assert page == OutputPage(chunks=(), more=False, ended=True)


async def test_chunk_is_never_stored_twice(store: Store, make: Make) -> None:
    job, [run] = make.job()
    await store.create_job(job, [run], None)
    chunks = make.chunks((OUT, b"one"), (OUT, b"two"))
    await store.append_output(run, chunks[:1])
    with pytest.raises(StoreConflict):
        await store.append_output(run, chunks)
    assert list(await store.read_output(run.id, stream=None, offset=0, limit=100)) == chunks[:1]
    await store.append_output(run, chunks[1:])
    assert await store.output_extent(run.id) == OutputExtent(stdout_bytes=6)
