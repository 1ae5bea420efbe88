"""The store, opened by a command on the controller's host; the daemon may be running beside it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import trio

from shovey_trio.core.audit.records import AuditEntry
from shovey_trio.identity.files import FileUnusable
from shovey_trio.store.contract import Store
from shovey_trio.store.opening import open_store

T = TypeVar("T")


def run_with_store(
    path: Path, work: Callable[[Store], Awaitable[T]], *, create: bool = False, audit: AuditEntry | None = None
) -> T:
    """Opens the store in an event loop of its own, does ``work`` and closes it; blocking.

    Args:
        path: the SQLite file.
        work: what to do with it.
        create: make the store; otherwise it must be there.
        audit: recorded when the work is done, for work of several writes; a single one takes its entry itself.

    Raises:
        FileUnusable: there is no store.
        And whatever the store or ``work`` raises.
    """
    if not create and not path.exists():
        raise FileUnusable(f"{path}: there is no store; run shovey-trio init", path=str(path))

    async def main() -> T:
        async with open_store(path, exclusive=create, create=create) as store:
            result = await work(store)
            if audit is not None:
                await store.append_audit([audit])
            return result

    return trio.run(main)
