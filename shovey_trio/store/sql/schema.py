"""Brings a database to the schema of this program, by Alembic, or says why it cannot.

An up-to-date database costs two lookups: Alembic is imported only when there is something to do.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from sqlalchemy import Connection, text

from shovey_trio.core.errors import StoreCorrupt

# The newest revision in migrations/versions; a test compares.
HEAD: Final = "0010"
REVISIONS: Final = ("0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008", "0009", "0010")


class SchemaState(Enum):
    """How a database compares to this program."""

    EMPTY = "empty"
    OLDER = "older"
    CURRENT = "current"


def compare_revision(connection: Connection, name: str) -> SchemaState:
    """Compares a database that is one of ours with this program.

    Raises:
        StoreCorrupt: it is of a newer version.
    """
    revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    if revision == HEAD:
        return SchemaState.CURRENT
    if revision not in REVISIONS:
        raise StoreCorrupt(f"{name} has schema {revision}; this program knows only up to {HEAD}", path=name)
    return SchemaState.OLDER


def migrate(connection: Connection, to: str = HEAD) -> None:
    """Applies all missing migrations up to one, in the transaction that the connection is in: all or nothing."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "shovey_trio.store.sql:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, to)
