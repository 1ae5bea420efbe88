"""Checksums of what is written once: events, output, the end of a run. They find what the database cannot see.

SQLite knows its pages and not what is in them: a flipped bit in a value would be served as if it had been written. So
these rows carry a CRC-32 of what they say, taken where they are written and compared where they are read. It finds
accidents; who can write to the file can make it anew, and is found out by the audit log. A row of an older version has
none.

What is summed is packed with its types and lengths, so that nothing moves from one value to the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from zlib import crc32

import msgpack

from shovey_trio.core.jobs.model import OutputChunk, Run, RunStatus
from shovey_trio.store.sql.rows import CHUNK, RUN, RUN_STATUS, Row, UndecodableRow, Values

# A run's checksum holds two: 31 bits over what a list of runs shows, above 32 bits over all of it.
_STATUS_SHIFT: Final = 32
_STATUS_BITS: Final = 0x7FFF_FFFF
_ALL_BITS: Final = 0xFFFF_FFFF

_pack: Final = msgpack.Packer().pack


def event_sum(seq: int, job_pk: int, run_pk: int | None, body: str) -> int:
    """Of an event's row."""
    return crc32(_packed((seq, job_pk, run_pk, body)))


def chunk_sum(run_pk: int, row: Mapping[str, Any]) -> int:
    """Of a row of output."""
    place = (run_pk, row["position"], row["stream"], row["stream_offset"], float(row["read_at"]), row["dropped_before"])
    return crc32(row["data"], crc32(_packed(place)))


def end_sum(run: Run, changes: Values) -> int | None:
    """Of the row of a run that has ended; None for one that has not."""
    if not run.is_terminal:
        return None
    fixed = (run.id, run.job_id, run.organization, run.node, run.created_at, run.nonce)
    return _status_sum(run.node, changes) << _STATUS_SHIFT | _all_sum(fixed, changes)


def check_event(stored: int | None, seq: int, job_pk: int, run_pk: int | None, body: str) -> None:
    """Holds when an event is as it was written.

    Raises:
        UndecodableRow: it is not; named, as by the others here.
    """
    if stored is not None and stored != event_sum(seq, job_pk, run_pk, body):
        raise UndecodableRow(f"event {seq} is not as it was written")


def checked_chunk(row: Row, run_pk: int, name: str) -> OutputChunk:
    """The chunk of a row: the columns of ``CHUNK``, then its checksum. ``name`` says whose output it is."""
    values = dict(zip(_CHUNK_NAMES, row))  # noqa: B905  # the checksum follows
    stored = row[len(_CHUNK_NAMES)]
    if stored is not None and stored != chunk_sum(run_pk, values):
        raise UndecodableRow(f"output of {name} at {values['position']} is not as it was written")
    return CHUNK.decode(row)


def checked_run(row: Row) -> Run:
    """The run of a row: the columns of ``RUN``, then its checksum."""
    stored = row[len(RUN.columns)]
    if stored is not None:
        changes = dict(zip(RUN.changing, row[len(RUN.fixed_columns) :]))  # noqa: B905  # the checksum follows
        if stored & _ALL_BITS != _all_sum(row[: len(RUN.fixed_columns)], changes):
            raise UndecodableRow(f"run {row[0]!r} of node {row[3]!r} in job {row[1]!r} is not as it was written")
    return RUN.decode(row)


def checked_status(row: Row) -> RunStatus:
    """How far a run is, from a row: the columns of ``RUN_STATUS``, then the run's checksum."""
    node, state, updated_at, stored = row
    if stored is not None and stored >> _STATUS_SHIFT != _status_sum(node, {"state": state, "updated_at": updated_at}):
        raise UndecodableRow(f"the state of the run of node {node!r} is not as it was written")
    return RUN_STATUS.decode(row)


def _status_sum(node: str, changes: Values) -> int:
    return crc32(_packed((node, changes["state"], float(changes["updated_at"])))) & _STATUS_BITS


def _all_sum(fixed: Sequence[Any], changes: Values) -> int:
    """Of a run's columns that never change, and of those others that differ from their defaults.

    So what comes later with a default leaves the checksums of older rows as they are. A whole number in a column of
    floats is summed as it will be read.
    """
    *words, created_at, nonce = fixed
    said = [
        (name, float(value) if is_float else value)
        for (name, default, is_float), value in zip(_CHANGING, changes.values(), strict=True)
        if value != default
    ]
    return crc32(_packed((words, float(created_at), nonce, said)))


def _packed(values: Any) -> bytes:
    try:
        packed: bytes = _pack(values)
    except (OverflowError, ValueError, TypeError):
        return b""  # was never written like that, so its checksum is another
    return packed


_CHUNK_NAMES: Final = tuple(column.name for column in CHUNK.columns)
_CHANGING: Final = [
    (column.name, RUN.defaults[column.name], column.type.python_type is float)
    for column in RUN.columns[len(RUN.fixed_columns) :]
]
