"""Brings a database to the schema of this program, by Alembic, or says why it cannot.

An up-to-date file costs two lookups: Alembic is imported only when there is something to do.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from sqlalchemy import Connection, text

from shovey_trio.core.errors import StoreCorrupt

# The newest revision in migrations/versions; a test compares.
HEAD: Final = "0005"
# "ShvT" in the header of the file: https://www.sqlite.org/fileformat.html#application_id
APPLICATION_ID: Final = 0x53687654
REVISIONS: Final = ("0001", "0002", "0003", "0004", "0005")


class SchemaState(Enum):
    """How a database compares to this program."""

    EMPTY = "empty"
    OLDER = "older"
    CURRENT = "current"


def inspect_schema(connection: Connection, name: str) -> SchemaState:
    """Compares a SQLite file with this program.

    Raises:
        StoreCorrupt: it is another program's file, or of a newer version of this one.
    """
    application = connection.execute(text("PRAGMA application_id")).scalar_one()
    tables = connection.execute(text("SELECT count(*) FROM sqlite_master")).scalar_one()
    if application == 0 and tables == 0:
        return SchemaState.EMPTY
    if application != APPLICATION_ID:
        raise StoreCorrupt(f"{name} is a database, but not one of shovey-trio", path=name)
    revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    if revision == HEAD:
        return SchemaState.CURRENT
    if revision not in REVISIONS:
        raise StoreCorrupt(f"{name} has schema {revision}; this program knows only up to {HEAD}", path=name)
    return SchemaState.OLDER


def migrate(connection: Connection) -> None:
    """Applies all missing migrations, in the transaction that the connection is in: all or nothing."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "shovey_trio.store.sql:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    connection.execute(text(f"PRAGMA application_id = {APPLICATION_ID}"))
