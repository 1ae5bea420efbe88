"""Reads of a run's output, each a function of one snapshot transaction.

How much there is follows from the last chunk alone: its position counts the bytes of both streams before it, its
offset those of its own. So appending a chunk updates nothing, and these reads cost the same however long a run talks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import Connection, Select, func, select

from shovey_trio.core.model import OutputChunk, OutputExtent, StreamName
from shovey_trio.store.rows import decode_chunk
from shovey_trio.store.tables import jobs, output, runs

# Run ids per query: SQLite allows 32,766 parameters, and few different lengths keep the statement cache useful.
_SLICE: Final = 500

_CHUNK: Final = (output.c.position, output.c.stream, output.c.stream_offset, output.c.read_at, output.c.data)


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


def read_output(
    connection: Connection, run_id: str, *, stream: StreamName | None, offset: int, limit: int
) -> Sequence[OutputChunk]:
    """See ``Store.read_output``."""
    run_pk = connection.execute(
        select(runs.c.run_pk).join(jobs, jobs.c.job_pk == runs.c.job_pk).where(runs.c.run_id == run_id)
    ).scalar_one_or_none()
    if run_pk is None:
        return ()
    start = output.c.position if stream is None else output.c.stream_offset
    query = select(*_CHUNK).where(output.c.run_pk == run_pk)
    if stream is not None:
        query = query.where(output.c.stream == stream.value)
    # The chunk that holds the offset is the last that starts at or before it.
    holder = connection.execute(query.where(start <= offset).order_by(start.desc()).limit(1)).one_or_none()
    chunks: list[OutputChunk] = []
    if holder is not None:
        first = decode_chunk(holder)
        skip = offset - (first.position if stream is None else first.stream_offset)
        if skip < len(first.data):
            chunks.append(cut_chunk(first, skip))
    size = sum(len(chunk.data) for chunk in chunks)
    rows = connection.execute(query.where(start > offset).order_by(start))
    for row in rows:
        size += len(row[-1])
        if chunks and size > limit:
            break
        chunks.append(decode_chunk(row))
    rows.close()
    return tuple(chunks)


def cut_chunk(chunk: OutputChunk, skip: int) -> OutputChunk:
    """The chunk without its first ``skip`` bytes."""
    if not skip:
        return chunk
    return replace(
        chunk, position=chunk.position + skip, stream_offset=chunk.stream_offset + skip, data=chunk.data[skip:]
    )


def _extent(position: int, stream: StreamName, offset: int, size: int) -> OutputExtent:
    own, other = offset + size, position - offset
    if stream is StreamName.STDOUT:
        return OutputExtent(stdout_bytes=own, stderr_bytes=other)
    return OutputExtent(stdout_bytes=other, stderr_bytes=own)
