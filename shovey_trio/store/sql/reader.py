"""Reads: a few connections, each read in a worker thread and in one snapshot of the database."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Concatenate, Final, ParamSpec, TypeVar

import trio
from sqlalchemy import Connection, Engine

from shovey_trio.core.errors import StoreCorrupt
from shovey_trio.store.sql.failures import Translate
from shovey_trio.store.sql.health import StoreHealth

P = ParamSpec("P")
T = TypeVar("T")

# Connections, and reads at a time; the rest wait in the limiter in the order they came. Python runs one thread at a
# time anyway: more than a few only help while a disk is slow. Each may hold one answer of at most some MiB.
READERS: Final = 4


class ReadPool:
    """Runs queries on the engine's connections, which must number ``READERS``."""

    def __init__(self, engine: Engine, translate: Translate, health: StoreHealth) -> None:
        self._engine = engine
        self._translate = translate
        self._health = health
        self._limiter = trio.CapacityLimiter(READERS)

    async def read(self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs a query in one snapshot and returns what it returns.

        Cancellation: waiting for a turn is cancelled at once; a query that runs is waited for.

        Raises:
            StoreUnavailable: the file cannot be read now.
            StoreCorrupt: the file is damaged; nothing is served any more.
            ShoveyError: what the query raises.
        """
        self._health.check()
        try:
            return await trio.to_thread.run_sync(
                partial(self._run, query, *args, **kwargs), limiter=self._limiter, thread_name="store reader"
            )
        except StoreCorrupt as error:
            self._health.condemn(error)
            raise

    def _run(self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            with self._engine.connect() as connection, connection.begin():
                return query(connection, *args, **kwargs)
        except Exception as error:
            translated = self._translate(error)
            if translated is error:
                raise
            raise translated from error
