"""Rows are read off the classes and the tables: every field comes back as it was, from its row and from its event."""

from __future__ import annotations

from dataclasses import MISSING, fields, replace
from enum import StrEnum
from typing import Any, get_args, get_type_hints

import pytest

from shovey_trio.core.jobs.command_input import InputRecord
from shovey_trio.core.jobs.model import Job, Node, Run, ToldEnd
from shovey_trio.core.jobs.states import RunState
from shovey_trio.store.sql.rows import JOB, NODE, RUN, RowCodec, UndecodableRow

from .conftest import Make

TOLD = ToldEnd(state=RunState.FAILED, cause="c", exit_code=None, signal=9, reported_at=1.5)
SPECIAL: dict[str, Any] = {
    "run_counts": {RunState.FAILED: 2},
    "tags": {"role": "web"},
    "input": InputRecord(args={"a": "ü"}, secret_env=("TOKEN",), secret_stdin=True),
    "late_report": TOLD,
    "held_end": TOLD,
}


def unlike_default(kind: type, name: str, default: Any) -> Any:
    """A value of the field's type that is not its default."""
    hint = get_type_hints(kind)[name]
    plain = get_args(hint)[0] if type(None) in get_args(hint) else hint
    if name in SPECIAL:
        return SPECIAL[name]
    if issubclass(plain, StrEnum):
        return next(member for member in plain if member != default)
    if plain is bool:
        return not default
    return {str: f"a {name}", int: 7, float: 7.25, bytes: b"\x00seven"}[plain]


def filled(value: Any) -> Any:
    """The value with all its fields unlike their defaults."""
    changes = {
        field.name: unlike_default(type(value), field.name, None if field.default is MISSING else field.default)
        for field in fields(value)
    }
    return replace(value, **changes)


def row_of(codec: RowCodec[Any], value: Any) -> list[Any]:
    """What the columns of a value would hold, those of a joined table included."""
    written = {**codec.fixed(value), **codec.changes(value)}
    elsewhere = {"job_id": getattr(value, "job_id", ""), "organization": value.organization}
    return [{**elsewhere, **written}[column.name] for column in codec.columns]


@pytest.mark.parametrize(("codec", "kind"), [(JOB, Job), (RUN, Run), (NODE, Node)])
@pytest.mark.parametrize("fill", [False, True])
def test_every_field_comes_back_from_its_row_and_from_its_event(
    codec: RowCodec[Any], kind: type, fill: bool, make: Make
) -> None:
    job, (run,) = make.job()
    value = next(value for value in (job, run, make.node()) if isinstance(value, kind))
    value = filled(value) if fill else value
    row = row_of(codec, value)
    assert all(type(each) in {str, int, float, bytes, type(None)} for each in row)
    assert codec.decode(row) == value
    assert codec.from_event(row[: len(codec.fixed_columns)], codec.event_body(codec.changes(value))) == value


def test_event_of_a_fresh_run_holds_next_to_nothing(make: Make) -> None:
    _, (run,) = make.job()
    assert RUN.event_body(RUN.changes(run)) == f'{{"updated_at":{run.updated_at}}}'


def test_event_written_before_a_field_was_there_means_its_default(make: Make) -> None:
    _, (run,) = make.job()
    body = '{"updated_at":5.0,"state":"running"}'
    row = row_of(RUN, run)
    assert RUN.from_event(row[: len(RUN.fixed_columns)], body) == replace(run, updated_at=5.0, state=RunState.RUNNING)


@pytest.mark.parametrize(
    ("column", "damage"), [("state", "runnxng"), ("late_report", "{"), ("late_report", '{"state":"failed"}')]
)
def test_row_that_was_never_written_so_is_named(make: Make, column: str, damage: str) -> None:
    _, (run,) = make.job()
    row = row_of(RUN, run)
    row[[each.name for each in RUN.columns].index(column)] = damage
    with pytest.raises(UndecodableRow, match=f"run '{run.id}'"):
        RUN.decode(row)
