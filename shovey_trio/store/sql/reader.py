"""Reads: a few connections, each read in a worker thread and in one snapshot of the database."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Concatenate, Final, ParamSpec, TypeVar

import trio
from sqlalchemy import Connection, Engine

from shovey_trio.core.errors import StoreCorrupt
from shovey_trio.observe.threads import run_in_thread
from shovey_trio.store.sql.failures import Translate, UndecodableText
from shovey_trio.store.sql.health import StoreHealth
from shovey_trio.store.sql.rows import UndecodableRow

P = ParamSpec("P")
T = TypeVar("T")

# Connections, and reads at a time; the rest wait in the limiter in the order they came. Python runs one thread at a
# time anyway: more than a few only help while a disk is slow. Each may hold one answer of at most some MiB.
READERS: Final = 4

Lenient = Callable[[Connection], AbstractContextManager[None]]


class ReadPool:
    """Runs queries on the engine's connections, which must number ``READERS``."""

    def __init__(self, engine: Engine, translate: Translate, health: StoreHealth, leniently: Lenient) -> None:
        """Args:
        engine: has as many connections.
        translate: names what the driver raises.
        health: is told of damage.
        leniently: makes a connection give every text, whatever is in it, for the block.
        """
        self._engine = engine
        self._leniently = leniently
        self._translate = translate
        self._health = health
        self._limiter = trio.CapacityLimiter(READERS)

    async def read(self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs a query in one snapshot and returns what it returns.

        Cancellation: waiting for a turn is cancelled at once; a query that runs is waited for.

        Raises:
            StoreUnavailable: the file cannot be read now.
            StoreCorrupt: the file is damaged; nothing is served any more.
            RowDamaged: a row is; everything else is served.
            ShoveyError: what the query raises.
        """
        self._health.check()
        try:
            return await run_in_thread(
                partial(self._run, query, *args, **kwargs), limiter=self._limiter, name="store reader"
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
            if isinstance(translated, UndecodableText):
                self._name_row(query, *args, **kwargs)
            if translated is error:
                raise
            raise translated from error

    def _name_row(self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> None:
        """Runs a query again that has met a text that is none.

        Raises:
            RowDamaged: its checksum says which row that is. Without one, all that is known is that there is such a row.
        """
        try:
            with self._engine.connect() as connection, self._leniently(connection), connection.begin():
                query(connection, *args, **kwargs)
        except UndecodableRow as error:
            raise self._translate(error) from error
