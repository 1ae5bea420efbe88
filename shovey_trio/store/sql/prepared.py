"""Statements for the frequent writes: compiled by SQLAlchemy once, executed by the driver directly.

SQLAlchemy's handling of parameters and results costs more than SQLite's whole work for a small row (measured: 10 µs of
18 per row of an ``executemany``, 30 µs of 34 for a lookup by key). These statements go to the connection's DBAPI cursor
and skip it, and with it all conversion of types (parameters must be what the driver takes) and of exceptions, which
``failures.translate`` knows either way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter
from typing import Any

from sqlalchemy import ClauseElement, Connection
from sqlalchemy.sql.compiler import SQLCompiler


class Prepared:
    """A statement whose parameters are all named by ``bindparam`` or by column, or have their value."""

    __slots__ = ("_compiled", "_statement")

    def __init__(self, statement: ClauseElement) -> None:
        self._statement = statement
        self._compiled: dict[str, tuple[str, Callable[[Mapping[str, Any]], Any]]] = {}

    def execute(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Executes the statement once per row of parameters."""
        sql, arrange = self._compile(connection)
        cursor = connection.connection.cursor()
        try:
            cursor.executemany(sql, [arrange(row) for row in rows])
        finally:
            cursor.close()

    def find_all(self, connection: Connection, **parameters: Any) -> Sequence[tuple[Any, ...]]:
        """All rows that the statement selects."""
        sql, arrange = self._compile(connection)
        cursor = connection.connection.cursor()
        try:
            cursor.execute(sql, arrange(parameters))
            return cursor.fetchall()
        finally:
            cursor.close()

    @contextmanager
    def rows(self, connection: Connection, **parameters: Any) -> Iterator[Iterator[tuple[Any, ...]]]:
        """The rows that the statement selects, read as they are asked for; the rest is left when the block ends."""
        sql, arrange = self._compile(connection)
        cursor = connection.connection.cursor()
        try:
            yield cursor.execute(sql, arrange(parameters))
        finally:
            cursor.close()

    def find(self, connection: Connection, **parameters: Any) -> Sequence[Any] | None:
        """The first row that the statement selects, or returns of what it inserts, if there is one."""
        sql, arrange = self._compile(connection)
        cursor = connection.connection.cursor()
        try:
            cursor.execute(sql, arrange(parameters))
            return cursor.fetchone()
        finally:
            cursor.close()

    def _compile(self, connection: Connection) -> tuple[str, Callable[[Mapping[str, Any]], Any]]:
        dialect = connection.dialect
        if dialect.name not in self._compiled:
            compiled = self._statement.compile(dialect=dialect)
            assert isinstance(compiled, SQLCompiler)
            names = compiled.positiontup
            own = {name: value for name, value in compiled.params.items() if value is not None}
            self._compiled[dialect.name] = (str(compiled), dict if names is None else _arranger(names, own))
        return self._compiled[dialect.name]


def _arranger(names: Sequence[str], own: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    if own:  # such as SQLite's offset beside a limit
        return lambda row: tuple(row[name] if name in row else own[name] for name in names)
    if not names:
        return lambda _: ()
    if len(names) == 1:
        return lambda row: (row[names[0]],)
    return itemgetter(*names)
