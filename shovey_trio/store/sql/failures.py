"""What SQLAlchemy and SQLite raise, as the errors that the store's callers know. Nothing else crosses this border."""

from __future__ import annotations

import sqlite3
from typing import Final

from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from shovey_trio.core.errors import StoreCorrupt, StoreUnavailable
from shovey_trio.store.sql.rows import UndecodableRow

# Primary result codes: https://www.sqlite.org/rescode.html. An extended code carries its primary one in the low byte.
_PRIMARY: Final = 0xFF
_CORRUPT: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT})
_UNAVAILABLE: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOLFS,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_READONLY,
    }
)


class StoreConflict(Exception):
    """Our own bug: a write that breaks a rule of the tables, such as a second run for one node of a job."""


def translate(error: Exception, name: str) -> Exception:
    """The error to raise instead of ``error``; ``error`` itself when it is not the database's.

    Args:
        error: what a statement, a commit or a row's decoder raised.
        name: the store's file, which the message names.
    """
    if isinstance(error, UndecodableRow):
        return StoreCorrupt(f"{name} is damaged: {error}", path=name)
    if isinstance(error, PoolTimeout | OSError):
        return StoreUnavailable(f"{name}: {error}", path=name)
    original = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(original, sqlite3.Error):
        return _translate_sqlite(original, name)
    # Python's module refuses integers over 64 bits and lone surrogates by errors of its own.
    if isinstance(error, SQLAlchemyError | OverflowError | UnicodeEncodeError):
        return StoreConflict(f"{name}: {error}")
    return error


def _translate_sqlite(error: sqlite3.Error, name: str) -> Exception:
    # Errors that Python's module makes itself have no code, such as a text column that is not UTF-8.
    code = getattr(error, "sqlite_errorcode", 0) & _PRIMARY
    if code in _CORRUPT or str(error).startswith("Could not decode to UTF-8"):
        return StoreCorrupt(f"{name} is damaged or not a store: {error}", path=name)
    if code in _UNAVAILABLE:
        return StoreUnavailable(f"{name}: {error}", path=name)
    return StoreConflict(f"{name}: {error}")
