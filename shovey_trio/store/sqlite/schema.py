"""What a SQLite file is: one of ours, by its header, and of which version."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final
from urllib.parse import quote

from sqlalchemy import Connection, text

from shovey_trio.core.errors import StoreCorrupt
from shovey_trio.store.sql.schema import HEAD, SchemaState, compare_revision, migrate
from shovey_trio.store.sql.tables import metadata

# "ShvT" in the header of the file: https://www.sqlite.org/fileformat.html#application_id
APPLICATION_ID: Final = 0x53687654

# Against our own mistakes; who can write to the file can drop them, and is found out by the chain.
AUDIT_TRIGGERS: Final = (
    "CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit "
    "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END",
    "CREATE TRIGGER audit_is_pruned_from_its_beginning BEFORE DELETE ON audit "
    "WHEN old.seq > (SELECT coalesce(max(seq), 0) FROM audit_checkpoints) "
    "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END",
)


def inspect_schema(connection: Connection, name: str) -> SchemaState:
    """Compares a file with this program.

    Raises:
        StoreCorrupt: it is another program's file, or of a newer version of this one.
    """
    application = connection.execute(text("PRAGMA application_id")).scalar_one()
    tables = connection.execute(text("SELECT count(*) FROM sqlite_master")).scalar_one()
    if application == 0 and tables == 0:
        return SchemaState.EMPTY
    if application != APPLICATION_ID:
        raise StoreCorrupt(f"{name} is a database, but not one of shovey-trio", path=name)
    return compare_revision(connection, name)


def has_content(path: Path) -> bool:
    """Whether there is a file with anything in it; what SQLite keeps beside it counts."""
    log = path.with_name(f"{path.name}-wal")
    return path.exists() and any(file.exists() and file.stat().st_size for file in (path, log))


def nothing_there(path: Path) -> StoreCorrupt:
    """The error for a store that must be there and is missing or empty."""
    what = "is empty" if path.exists() else "is missing"
    return StoreCorrupt(f"{path} {what}, nothing was changed; put a backup in its place", path=str(path))


def check_tables(connection: Connection, name: str) -> None:
    """Holds when every table is there.

    Raises:
        StoreCorrupt: one is not; it names it.
    """
    found = connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'table'")).scalars()
    missing = sorted(set(metadata.tables) - set(found))
    if missing:
        raise StoreCorrupt(
            f"{name} is damaged: it has no table {', '.join(missing)}; put a backup in its place", path=name
        )


def migrate_file(connection: Connection) -> None:
    """Makes a file ours, of this program's schema, in the transaction that the connection is in: all or nothing."""
    migrate(connection)
    connection.execute(text(f"PRAGMA application_id = {APPLICATION_ID}"))


def outdated_schema(path: Path) -> str:
    """What is to be said of a store that opening would migrate; '' for one that is up to date, missing or damaged.

    Blocks, and changes nothing.
    """
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as connection:
            tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if tables == 0:
                return f"{path.name} is empty"
            revision = connection.execute("SELECT version_num FROM alembic_version").fetchone()[0]
    except (sqlite3.Error, TypeError):
        return ""  # opening it for real says what is wrong
    return f"{path.name} has schema {revision}, this program {HEAD}" if revision < HEAD else ""
