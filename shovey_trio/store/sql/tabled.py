"""Rows that are values of one class, by their primary key: stored, removed, loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Table, delete, insert, select

from shovey_trio.store.sql.rows import RowCodec
from shovey_trio.store.sql.transaction import WriteTransaction

T = TypeVar("T")


def store_value(transaction: WriteTransaction, codec: RowCodec[T], value: T) -> None:
    """Stores a value in place of the one with the same key, which are the codec's fixed columns."""
    put_row(transaction, codec.table, codec.fixed(value), codec.changes(value))


def remove_value(transaction: WriteTransaction, codec: RowCodec[T], value: T) -> bool:
    """Removes the value with this one's key; whether there was one."""
    return remove_row(transaction, codec.table, codec.fixed(value))


def load_values(connection: Connection, codec: RowCodec[T], *where: ColumnElement[bool]) -> Sequence[T]:
    """The values that meet all conditions, in the order of their keys."""
    query = select(*codec.columns).where(*where).order_by(*codec.table.primary_key)
    return tuple(codec.decode(row) for row in connection.execute(query))


def put_row(transaction: WriteTransaction, table: Table, key: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Stores a row in place of the one with the same key."""
    remove_row(transaction, table, key)
    transaction.connection.execute(insert(table), {**key, **values})


def remove_row(transaction: WriteTransaction, table: Table, key: Mapping[str, Any]) -> bool:
    """Removes the row with this key; whether there was one."""
    where = [table.c[name] == value for name, value in key.items()]
    return transaction.connection.execute(delete(table).where(*where)).rowcount == 1
