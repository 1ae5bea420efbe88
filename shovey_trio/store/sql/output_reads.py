"""Reads of a run's output, each a function of one snapshot transaction.

How much there is follows from the last chunk alone: its position counts the bytes of both streams before it, its
offset those of its own. So appending a chunk updates nothing, and these reads cost the same however long a run talks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import Column, ColumnElement, Connection, Select, bindparam, func, select

from shovey_trio.core.jobs.model import OutputChunk, OutputExtent, StreamName
from shovey_trio.core.jobs.states import TERMINAL_RUN_STATES, RunState
from shovey_trio.store.contract import OutputPage
from shovey_trio.store.sql.checksums import checked_chunk
from shovey_trio.store.sql.prepared import Prepared
from shovey_trio.store.sql.rows import CHUNK
from shovey_trio.store.sql.tables import jobs, output, runs

# Run ids per query: SQLite allows 32,766 parameters, and few different lengths keep the statement cache useful.
_SLICE: Final = 500

_RUN: Final = Prepared(
    select(runs.c.run_pk, runs.c.state)
    .join(jobs, jobs.c.job_pk == runs.c.job_pk)
    .where(runs.c.run_id == bindparam("run_id"))
)


def _from(start: Column[int], *also: ColumnElement[bool]) -> Prepared:
    """Chunks in order of ``start``, from the last that starts at or before the offset on: that one holds it."""
    chosen = (output.c.run_pk == bindparam("run_pk"), *also)
    held = select(func.max(start)).where(*chosen, start <= bindparam("offset"))
    first = func.coalesce(held.correlate(None).scalar_subquery(), 0)
    return Prepared(select(*CHUNK.columns, output.c.checksum).where(*chosen, start >= first).order_by(start))


_BOTH: Final = _from(output.c.position)
_ONE: Final = _from(output.c.stream_offset, output.c.stream == bindparam("stream"))


def output_extents(connection: Connection, run_ids: Sequence[str]) -> Mapping[str, OutputExtent]:
    """See ``Store.output_extents``; a run without output, or that is not stored, has none."""
    other = output.alias("other")
    last = select(func.max(other.c.position)).where(other.c.run_pk == runs.c.run_pk).correlate(runs).scalar_subquery()
    query: Select[Any] = (
        select(
            runs.c.run_id,
            output.c.position,
            output.c.stream,
            output.c.stream_offset,
            func.length(output.c.data),
        )
        .join(jobs, jobs.c.job_pk == runs.c.job_pk)
        .join(output, (output.c.run_pk == runs.c.run_pk) & (output.c.position == last))
    )
    extents = dict.fromkeys(run_ids, OutputExtent())
    for start in range(0, len(run_ids), _SLICE):
        for run_id, position, stream, offset, size in connection.execute(
            query.where(runs.c.run_id.in_(run_ids[start : start + _SLICE]))
        ):
            extents[run_id] = _extent(position, StreamName(stream), offset, size)
    return extents


def read_output_page(
    connection: Connection, run_id: str, *, stream: StreamName | None, offset: int, limit: int
) -> OutputPage:
    """See ``Store.read_output_page``."""
    run = _RUN.find(connection, run_id=run_id)
    if run is None:
        return OutputPage(chunks=(), more=False, ended=True)
    run_pk, state = run
    ended = RunState(state) in TERMINAL_RUN_STATES
    if stream is None:
        reading = _BOTH.rows(connection, run_pk=run_pk, offset=offset)
    else:
        reading = _ONE.rows(connection, run_pk=run_pk, stream=stream.value, offset=offset)
    chunks: list[OutputChunk] = []
    size = 0
    with reading as rows:
        for row in rows:
            chunk = checked_chunk(row, run_pk, f"run {run_id}")
            skip = max(offset - (chunk.position if stream is None else chunk.stream_offset), 0)
            if skip >= len(chunk.data):
                continue
            size += len(chunk.data) - skip
            if chunks and size > limit:
                return OutputPage(chunks=tuple(chunks), more=True, ended=ended)
            chunks.append(cut_chunk(chunk, skip))
    return OutputPage(chunks=tuple(chunks), more=False, ended=ended)


def cut_chunk(chunk: OutputChunk, skip: int) -> OutputChunk:
    """The chunk without its first ``skip`` bytes."""
    if not skip:
        return chunk
    return replace(
        chunk,
        position=chunk.position + skip,
        stream_offset=chunk.stream_offset + skip,
        data=chunk.data[skip:],
        dropped_before=0,
    )


def _extent(position: int, stream: StreamName, offset: int, size: int) -> OutputExtent:
    own, other = offset + size, position - offset
    if stream is StreamName.STDOUT:
        return OutputExtent(stdout_bytes=own, stderr_bytes=other)
    return OutputExtent(stdout_bytes=other, stderr_bytes=own)
