"""Copies of a store's file: made while it is served, and checked."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from shovey_trio.core.errors import StoreCorrupt
from shovey_trio.store.sql.schema import REVISIONS
from shovey_trio.store.sqlite.failures import sqlite_failure
from shovey_trio.store.sqlite.schema import APPLICATION_ID


def copy_store(store: Path, target: Path) -> None:
    """Writes a copy as of one moment (0600), whoever else writes to the store meanwhile. Blocking.

    Raises:
        StoreUnavailable: the store cannot be read, or the copy not written.
        StoreCorrupt: the store is damaged, or missing.
    """
    if not store.exists():
        raise StoreCorrupt(f"{store} is missing", path=str(store))
    target.touch(mode=0o600)
    try:
        # Not read-only: such a connection, if it is the last one to close, leaves SQLite's files beside the store.
        with closing(_open(store, "rw")) as source, closing(sqlite3.connect(target)) as copy:
            source.backup(copy)
    except sqlite3.Error as error:
        raise sqlite_failure(error, str(store)) or error from error


def check_copy(copy: Path) -> None:
    """Reads a copy that nobody has open, whole. Blocking; changes nothing.

    Raises:
        StoreCorrupt: it is no store, damaged, or of a newer version.
    """
    try:
        with closing(_open(copy, "ro&immutable=1")) as connection:
            [application] = connection.execute("PRAGMA application_id").fetchone()
            if application != APPLICATION_ID:
                raise StoreCorrupt("it is no store of shovey-trio", path=str(copy))
            [revision] = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            if revision not in REVISIONS:
                raise StoreCorrupt(
                    f"it has schema {revision}; this program knows only up to {REVISIONS[-1]}", path=str(copy)
                )
            [found] = connection.execute("PRAGMA integrity_check(1)").fetchone()
            if found != "ok":
                raise StoreCorrupt(f"the copy is damaged: {found}", path=str(copy))
    except sqlite3.Error as error:
        raise sqlite_failure(error, "the copy") or error from error


def _open(path: Path, how: str) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(path))}?mode={how}", uri=True)
