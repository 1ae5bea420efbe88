"""Alembic's environment: runs in the transaction of the connection that ``schema.migrate`` hands over."""

from __future__ import annotations

from alembic import context

from shovey_trio.store.sql.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
