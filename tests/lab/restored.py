"""An older copy of a controller's store, made and put back as somebody does who has never heard of ``backup``."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from shovey_trio.demo.fleet import Fleet


def copy_store(source: Path, target: Path) -> None:
    """As somebody's nightly job does."""
    with closing(sqlite3.connect(source)) as store, closing(sqlite3.connect(target)) as copy:
        store.backup(copy)
    target.chmod(0o600)


def put_back(copy: Path, store: Path) -> None:
    copy.replace(store)
    for name in ("-wal", "-shm"):
        store.with_name(store.name + name).unlink(missing_ok=True)


@contextmanager
def restored_once(fleet: Fleet) -> Iterator[None]:
    """The controller that is started in the block is told that its store was restored."""
    fleet.controller.command.append("--restored")
    try:
        yield
    finally:
        fleet.controller.command.remove("--restored")
