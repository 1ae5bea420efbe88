"""What the errors of Python's ``sqlite3`` mean to the store's callers."""

from __future__ import annotations

import sqlite3
from typing import Final

from shovey_trio.core.errors import StoreCorrupt, StoreUnavailable
from shovey_trio.store.sql.failures import StoreConflict, UndecodableText

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


def sqlite_failure(error: BaseException, name: str) -> Exception | None:
    """The error to raise in place of the driver's; None when it is not the driver's."""
    if not isinstance(error, sqlite3.Error):
        return None
    # Errors that Python's module makes itself have no code, such as a text column that is not UTF-8.
    code = getattr(error, "sqlite_errorcode", 0) & _PRIMARY
    if str(error).startswith("Could not decode to UTF-8"):
        return UndecodableText(f"{name} is damaged: {error}", path=name)
    if code in _CORRUPT:
        return StoreCorrupt(f"{name} is damaged or not a store: {error}", path=name)
    if code in _UNAVAILABLE:
        return StoreUnavailable(f"{name}: {error}", path=name)
    return StoreConflict(f"{name}: {error}")
