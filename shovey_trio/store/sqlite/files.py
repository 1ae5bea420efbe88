"""Opens the store in a SQLite file: files and locks, pragmas, checks, one writing and some reading connections.

Two processes may have it open: one that serves (``exclusive``, which locks the file while it is open) and short offline
administration on the same host. SQLite itself keeps their writes apart; the server is not told of the other's.
"""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio
from sqlalchemy import URL, Connection, Engine, QueuePool, create_engine, event, text

from shovey_trio.core.errors import ConfigurationInvalid, StoreCorrupt, StoreUnavailable
from shovey_trio.store.sql.committer import Committer
from shovey_trio.store.sql.failures import translator
from shovey_trio.store.sql.health import StoreHealth
from shovey_trio.store.sql.news import OwnNews
from shovey_trio.store.sql.reader import READERS, ReadPool
from shovey_trio.store.sql.schema import SchemaState
from shovey_trio.store.sql.store import SqlStore
from shovey_trio.store.sql.writer import GroupWriter
from shovey_trio.store.sqlite.failures import sqlite_failure
from shovey_trio.store.sqlite.lock import StoreLock
from shovey_trio.store.sqlite.schema import check_tables, has_content, inspect_schema, migrate_file, nothing_there
from shovey_trio.store.sqlite.sequence import FileSequence

# Seconds that a statement waits for another process's write before the store counts as unavailable.
BUSY_WAIT: Final = 2.0
# Bytes up to which a file is read through at open (0.1 s per 16 MiB). In a larger one damage is found when the damaged
# page is read, and then nothing is served any more.
CHECKED_AT_OPEN: Final = 16 * 1024 * 1024
# Pages (4 KiB) in the write-ahead log before it is copied into the file, and the bytes it may keep after that. The
# commit that passes the number copies, and everybody waits for it: 15 ms with these, 50 ms with four times as many.
_CHECKPOINT_PAGES: Final = 1_000
_LOG_BYTES: Final = 64 * 1024 * 1024
_CLOSE_DEADLINE: Final = 10.0


@asynccontextmanager
async def open_sqlite(path: Path, *, exclusive: bool = True, create: bool = True) -> AsyncIterator[SqlStore]:
    """Opens the store in the file ``path``, made (mode 0600) and migrated if need be.

    Leaving the block takes no more writes, finishes those under way within 10 s and fails the rest. Both ends are
    shielded from cancellation.

    Args:
        path: the file; SQLite keeps ``-wal`` and ``-shm`` beside it, the store ``.lock``.
        exclusive: serve it: nobody else may at the same time. False is for offline administration.
        create: make what is not there; otherwise a missing or empty file is refused, and nothing is changed.

    Raises:
        StoreUnavailable: the file cannot be opened, or another process serves it.
        StoreCorrupt: the file is damaged, not a store, lacks a table, or is of a newer version.
        ConfigurationInvalid: others than its owner may read the file or change its directory.
    """
    files = await trio.to_thread.run_sync(partial(_StoreFile, path, exclusive=exclusive, create=create))
    try:
        health = StoreHealth()
        news = OwnNews()
        writer = GroupWriter(Committer(files.writing, FileSequence(), files.translate).commit, health, news.committed)
        try:
            yield SqlStore(writer, ReadPool(files.readers, files.translate, health, leniently), health, news)
        finally:
            await writer.aclose()
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_DEADLINE):
            # Abandoned rather than waited for past the deadline: a disk that hangs must not hang the daemon's exit.
            await trio.to_thread.run_sync(files.close, abandon_on_cancel=True)


class _StoreFile:
    """The open file: everything that must be closed again. Blocking; used in worker threads."""

    def __init__(self, path: Path, *, exclusive: bool, create: bool) -> None:
        self._name = str(path)
        self._create = create
        self.translate = translator(self._name, sqlite_failure)
        with ExitStack() as stack:
            _check_files(path)
            if not create and not has_content(path):
                raise nothing_there(path)
            lock = StoreLock(path)
            stack.callback(lock.close)
            try:
                if not path.exists():
                    # Mode 0600 from the start, and SQLite gives -wal and -shm the file's mode.
                    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
                if exclusive:
                    lock.acquire()
                self.writing = self._open_writer(path, stack)
                self._prepare(path, lock)
                self.readers = open_engine(path, connections=READERS, begin="BEGIN", pragmas=("query_only = ON",))
                stack.callback(self.readers.dispose)
            except Exception as error:
                translated = self.translate(error)
                if translated is error:
                    raise
                raise translated from error
            if not exclusive:
                lock.release()
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Closes readers, writer and lock, in that order: the last connection to close empties the log."""
        self._stack.close()

    def _open_writer(self, path: Path, stack: ExitStack) -> Connection:
        pragmas = (
            "journal_mode = WAL",
            "synchronous = FULL",
            f"wal_autocheckpoint = {_CHECKPOINT_PAGES}",
            f"journal_size_limit = {_LOG_BYTES}",
        )
        engine = open_engine(path, connections=1, begin="BEGIN IMMEDIATE", pragmas=pragmas)
        stack.callback(engine.dispose)
        connection = engine.connect()
        stack.callback(connection.close)
        return connection

    def _prepare(self, path: Path, lock: StoreLock) -> None:
        with self.writing.begin():
            state = inspect_schema(self.writing, self._name)
            if state is SchemaState.EMPTY and not self._create:
                raise nothing_there(path)
            if state is SchemaState.CURRENT:
                if path.stat().st_size <= CHECKED_AT_OPEN:
                    self._check_pages()
            else:
                lock.acquire()
                migrate_file(self.writing)
            check_tables(self.writing, self._name)

    def _check_pages(self) -> None:
        found = self.writing.execute(text("PRAGMA quick_check(1)")).scalar_one()
        if found != "ok":
            raise StoreCorrupt(f"{self._name} is damaged: {found}", path=self._name)


@contextmanager
def leniently(connection: Connection) -> Iterator[None]:
    """Has a connection give every text, with surrogates for what is no UTF-8, for the block."""
    raw = connection.connection.driver_connection
    assert raw is not None
    raw.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
    try:
        yield
    finally:
        raw.text_factory = str


def _check_files(path: Path) -> None:
    try:
        if path.parent.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ConfigurationInvalid(f"{path.parent} may be changed by others; the store's directory must be 0700")
        if path.is_dir():
            raise ConfigurationInvalid(f"{path} is a directory; the store is a file")
        if path.exists() and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigurationInvalid(f"{path} is open to others; the store's file must be 0600")
    except OSError as error:
        raise StoreUnavailable(f"{path}: {error}", path=str(path)) from error


def open_engine(path: Path, *, connections: int, begin: str, pragmas: tuple[str, ...]) -> Engine:
    """A pool of so many connections to a store's file, whose transactions begin with ``begin``; to be disposed of."""
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        poolclass=QueuePool,
        pool_size=connections,
        max_overflow=0,
        # No autocommit of Python's module (isolation_level None): transactions are begun below, and explicitly.
        connect_args={"timeout": BUSY_WAIT, "isolation_level": None, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def set_pragmas(connection: Any, _: object) -> None:
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def begin_transaction(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine
