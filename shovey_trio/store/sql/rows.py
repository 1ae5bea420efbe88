"""Values to rows and back, read off two declarations: the fields of a class, and the columns of ``tables``.

A new field is a line in its class, a column of the same name in ``tables``, and a migration. How it is stored follows
from its type: an enumeration as its value, a flag as 0 or 1, a mapping or a dataclass as JSON, the rest as it is. Where
a column may be NULL and the field may not be None, NULL stands for the field's default.

A job or run has columns that never change and columns that every write sets. The changing ones are written twice:
whole into its row, and into the event of that write as JSON of those that differ from their defaults, so that the
events of 10,000 fresh runs cost 30 bytes each. A default therefore never changes: stored events lean on it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, fields, is_dataclass
from enum import StrEnum
from operator import attrgetter
from types import NoneType
from typing import Any, Final, Generic, TypeVar, get_args, get_origin, get_type_hints

from sqlalchemy import Column, Table

from shovey_trio.core.chef.principals import ChefPrincipal
from shovey_trio.core.jobs.model import Grant, Job, Node, NodeStatus, OutputChunk, Run, RunStatus, User
from shovey_trio.store.sql import tables

Row = Sequence[Any]
Values = dict[str, Any]
T = TypeVar("T")


class UndecodableRow(Exception):
    """A row holds what was never written: the file is damaged in a way that the database cannot see."""


class RowCodec(Generic[T]):
    """How values of a class are rows of a table.

    Attributes:
        table: which has them, but for columns that were said to be elsewhere.
        columns: a whole value, as ``decode`` takes it; the fixed ones first.
        fixed_columns: those that never change.
        changing: names of those that every write sets.
        defaults: what stands in those, by name, for a field's default.
        fixed: gives a value's columns that never change, without those of another table.
        changes: gives a value's columns that every write sets.
    """

    def __init__(
        self, kind: type[T], table: Table, *, fixed: Sequence[str], columns: Mapping[str, Column[Any]] | None = None
    ) -> None:
        """Looks up each field's column.

        Args:
            kind: the class, a dataclass.
            table: has a column for each field.
            fixed: the fields that never change.
            columns: of the fields whose column has another name, or is in another table, which is not written.
        """
        others = {field.name for field in fields(kind)} - {*fixed}  # type: ignore[arg-type]
        place = {**dict(table.c.items()), **(columns or {})}
        coded = {field.name: _coded(kind, field, place[field.name]) for field in fields(kind)}  # type: ignore[arg-type]
        in_order = [coded[name] for name in (*fixed, *(name for name in coded if name in others))]
        self.table = table
        self._kind = kind
        self._fields = [each.field for each in in_order]
        self._decoders = [(each.field, each.decode, each.null) for each in in_order if each.decode]
        self.columns: tuple[Column[Any], ...] = tuple(each.column for each in in_order)
        self.fixed_columns = self.columns[: len(fixed)]
        self.changing = tuple(column.name for column in self.columns[len(fixed) :])
        self.defaults = {each.column.name: each.default for each in in_order[len(fixed) :]}
        self.fixed: Callable[[T], Values] = _encoder(
            [each for each in in_order[: len(fixed)] if each.column.table is table]
        )
        self.changes: Callable[[T], Values] = _encoder(in_order[len(fixed) :])

    def decode(self, row: Row) -> T:
        """A value from ``columns``; what follows them in the row is left alone.

        Raises:
            UndecodableRow: no value is stored like that.
        """
        try:
            values = dict(zip(self._fields, row))  # noqa: B905  # a row may be longer
            for name, decode, null in self._decoders:
                stored = values[name]
                values[name] = null if stored is None else decode(stored)
            return self._kind(**values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UndecodableRow(f"{self._kind.__name__.lower()} {row[0]!r}: {error}") from error

    def event_body(self, changes: Values) -> str:
        """The JSON of an event: what of ``changes`` differs from the defaults."""
        defaults = self.defaults
        return _dump({name: value for name, value in changes.items() if value != defaults[name]})

    def from_event(self, fixed: Row, body: str) -> T:
        """The value that was written with an event, from ``fixed_columns`` and the event's body."""
        try:
            changes = json.loads(body)
            return self.decode((*fixed, *(changes.get(name, default) for name, default in self.defaults.items())))
        except (ValueError, AttributeError) as error:
            raise UndecodableRow(f"event: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Coded:
    """A field, its column, and what is done to its value on the way; None for nothing."""

    field: str
    column: Column[Any]
    encode: Callable[[Any], Any] | None
    decode: Callable[[Any], Any] | None
    default: Any  # encoded
    null: Any  # what NULL stands for


def _coded(kind: type, field: Field[Any], column: Column[Any]) -> _Coded:
    hint = get_type_hints(kind)[field.name]
    optional = NoneType in get_args(hint)
    encode, decode = _codes(get_args(hint)[0] if optional else hint)
    default = _default(field)
    if isinstance(default, StrEnum) and encode is None:
        encode = str  # open to other words than the enumeration's, and no driver has to know its class
    null = default if column.nullable and not optional else None
    if null is not None and encode is not None:
        encode = _null_for(null, encode)
    return _Coded(
        field=field.name,
        column=column,
        encode=encode,
        decode=decode,
        default=default if encode is None or default is None else encode(default),
        null=null,
    )


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return None if field.default is MISSING else field.default


def _codes(hint: Any) -> tuple[Callable[[Any], Any] | None, Callable[[Any], Any] | None]:
    if get_origin(hint) is not None and issubclass(get_origin(hint), Mapping):
        return lambda value: _dump(dict(value)), lambda text: _revived(hint, json.loads(text))
    if is_dataclass(hint):
        return lambda value: _dump(asdict(value)), lambda text: _revived(hint, json.loads(text))
    if issubclass(hint, StrEnum):
        return str, {member.value: member for member in hint}.__getitem__
    return (int, bool) if hint is bool else (None, None)


def _null_for(null: Any, encode: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value == null else encode(value)


def _revived(hint: Any, value: Any) -> Any:
    """A value of type ``hint`` from what JSON has made of it."""
    arguments = get_args(hint)
    origin = get_origin(hint) or hint
    if NoneType in arguments:
        return None if value is None else _revived(arguments[0], value)
    if issubclass(origin, Mapping):
        return {_revived(arguments[0], key): _revived(arguments[1], each) for key, each in value.items()}
    if is_dataclass(origin) and isinstance(origin, type):
        hints = get_type_hints(origin)
        return origin(**{name: _revived(hints[name], each) for name, each in value.items()})
    return origin(value) if issubclass(origin, StrEnum | tuple) else value


def _encoder(coded: Sequence[_Coded]) -> Callable[[Any], Values]:
    columns = [each.column.name for each in coded]
    names = [each.field for each in coded]
    encoders = [(each.column.name, each.encode) for each in coded if each.encode]
    # Twice as fast as ``getattr`` for each, and every write of a run passes here; of one name it makes no tuple.
    read = attrgetter(*names) if len(names) > 1 else lambda value: [getattr(value, name) for name in names]

    def encode(value: Any) -> Values:
        row = dict(zip(columns, read(value), strict=True))
        for column, code in encoders:
            if row[column] is not None:
                row[column] = code(row[column])
        return row

    return encode


# Made once: ``json.dumps`` with options makes an encoder for every call, which costs more than encoding an event.
_dump: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode

_runs, _jobs = tables.runs, tables.jobs
_JOB_FIXED: Final = (
    "id",
    "organization",
    "command",
    "quorum",
    "run_timeout",
    "kill_grace",
    "created_by",
    "created_at",
    "input",
)
JOB: Final = RowCodec(Job, _jobs, fixed=_JOB_FIXED, columns={"id": _jobs.c.job_id})
# A run's job and organization are those of its job's row. Its nonce is made anew when the clock is set or the run is
# released before any order went out: its row has the last one, and no event says it.
RUN: Final = RowCodec(
    Run,
    _runs,
    fixed=("id", "job_id", "organization", "node", "created_at", "nonce"),
    columns={"id": _runs.c.run_id, "job_id": _jobs.c.job_id, "organization": _jobs.c.organization},
)
RUN_STATUS: Final = RowCodec(RunStatus, _runs, fixed=("node", "state", "updated_at"))
CHUNK: Final = RowCodec(
    OutputChunk,
    tables.output,
    fixed=("position", "stream", "stream_offset", "read_at", "dropped_before", "data"),
)
NODE: Final = RowCodec(Node, tables.nodes, fixed=("organization", "name"))
NODE_STATUS: Final = RowCodec(
    NodeStatus, tables.node_statuses, fixed=("organization", "node", "presence", "since", "reason")
)
USER: Final = RowCodec(User, tables.users, fixed=("organization", "name"))
GRANT: Final = RowCodec(Grant, tables.grants, fixed=("organization", "user", "command", "nodes"))
CHEF_PRINCIPAL: Final = RowCodec(ChefPrincipal, tables.chef_principals, fixed=("organization", "kind", "name"))
