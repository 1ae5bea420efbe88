"""Reads a whole store and says what of it is damaged; nothing is changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, select, text

from shovey_trio.core.errors import StoreCorrupt
from shovey_trio.store.sql.checksums import check_event, checked_chunk, checked_run
from shovey_trio.store.sql.prepared import Prepared
from shovey_trio.store.sql.rows import (
    CHEF_PRINCIPAL,
    CHUNK,
    GRANT,
    JOB,
    NODE,
    NODE_STATUS,
    RUN,
    USER,
    Row,
    RowCodec,
    UndecodableRow,
)
from shovey_trio.store.sql.tables import events, jobs, output, runs
from shovey_trio.store.sqlite.failures import sqlite_failure
from shovey_trio.store.sqlite.files import leniently, open_engine

# Messages of SQLite's own check; what is behind them is told by one more line.
_MESSAGES: Final = 100


@dataclass(slots=True)
class StoreReport:
    """What a check has found.

    Attributes:
        rows: how many were read.
        unchecked: how many of those that could have a checksum have none, because an older version wrote them.
        damage: what is damaged, by name.
    """

    rows: int = 0
    unchecked: int = 0
    damage: list[str] = field(default_factory=list)


def check_file(path: Path) -> StoreReport:
    """Reads every page and every row of a store, while it is served or not. Blocking; as of one moment.

    Raises:
        StoreUnavailable: it cannot be read now.
    """
    report = StoreReport()
    engine = open_engine(path, connections=1, begin="BEGIN", pragmas=("query_only = ON",))
    try:
        with engine.connect() as connection, leniently(connection):
            connection.begin()  # not to be committed: SQLite refuses that once it has met a damaged page
            for name, check in (("file", _check_pages), *_PARTS.items()):
                try:
                    check(connection, report)
                except Exception as error:
                    failure = sqlite_failure(getattr(error, "orig", None) or error, name)
                    if not isinstance(failure, StoreCorrupt):
                        raise failure or error from error
                    report.damage.append(f"{name}: cannot be read to the end: {failure}")
    finally:
        engine.dispose()
    return report


def _check_pages(connection: Connection, report: StoreReport) -> None:
    said = [str(message) for (message,) in connection.execute(text(f"PRAGMA integrity_check({_MESSAGES})"))]
    report.damage += [] if said == ["ok"] else said


def _each(statement: Prepared, look: Callable[[Row], bool]) -> Check:
    """Looks at every row that a statement gives; ``look`` says whether a row could have a checksum and has none."""

    def check(connection: Connection, report: StoreReport) -> None:
        with statement.rows(connection) as rows:
            for row in rows:
                report.rows += 1
                try:
                    report.unchecked += look(row)
                    "".join(value for value in row if isinstance(value, str)).encode()
                except UnicodeEncodeError:
                    report.damage.append(f"a text in the row of {row[0]!r} is none")
                except UndecodableRow as error:
                    report.damage.append(str(error))

    return check


def _look_at_run(row: Row) -> bool:
    return checked_run(row).is_terminal and row[-1] is None


def _look_at_event(row: Row) -> bool:
    check_event(*row)
    checksum, seq, _, _, body = row
    try:
        json.loads(body)
    except ValueError as error:
        raise UndecodableRow(f"event {seq}: {error}") from error
    return checksum is None


def _look_at_chunk(row: Row) -> bool:
    *chunk, run_pk, run_id = row
    checked_chunk(chunk, run_pk, f"run {run_id}")
    return chunk[-1] is None


def _look_at(codec: RowCodec[Any]) -> Check:
    def look(row: Row) -> bool:
        codec.decode(row)
        return False

    return _each(Prepared(select(*codec.columns)), look)


Check = Callable[[Connection, StoreReport], None]

_PARTS: Final[Mapping[str, Check]] = {
    "runs": _each(
        Prepared(select(*RUN.columns, runs.c.checksum).join(jobs, jobs.c.job_pk == runs.c.job_pk)), _look_at_run
    ),
    "events": _each(
        Prepared(select(events.c.checksum, events.c.seq, events.c.job_pk, events.c.run_pk, events.c.body)),
        _look_at_event,
    ),
    "output": _each(
        Prepared(
            select(*CHUNK.columns, output.c.checksum, output.c.run_pk, runs.c.run_id).join(
                runs, runs.c.run_pk == output.c.run_pk
            )
        ),
        _look_at_chunk,
    ),
    "jobs": _look_at(JOB),
    "nodes": _look_at(NODE),
    "presence": _look_at(NODE_STATUS),
    "users": _look_at(USER),
    "grants": _look_at(GRANT),
    "Chef keys": _look_at(CHEF_PRINCIPAL),
}
