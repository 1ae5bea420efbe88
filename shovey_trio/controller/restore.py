"""Putting a backup back: everything is checked and made ready beside the store, then two renames put it in its place.

Killed at any moment, there is the store that was here, or none, or the restored one; the same command again goes on
from each of them. A controller starts neither without a store (``open_store``) nor with one whose head is not signed.
"""

from __future__ import annotations

import os
import pwd
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Final

import trio

from shovey_trio.application.restored import Restored, accept_restore, sign_anew
from shovey_trio.config.server import ServerSettings
from shovey_trio.controller.backup import Backup, extract_store, open_backup, put_files
from shovey_trio.identity.audit_files import AuditFiles
from shovey_trio.identity.files import FileUnusable, make_secret_directory, sync_directory
from shovey_trio.nursery.clock import WallClock
from shovey_trio.observe import failpoints
from shovey_trio.store.opening import open_store
from shovey_trio.store.sqlite.copies import check_copy
from shovey_trio.store.sqlite.lock import StoreLock

_STAGING: Final = ".restore-"
# What SQLite keeps beside a store: part of it, and poison to another one.
_BESIDE: Final = ("-wal", "-shm")


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredBackup:
    """What was done.

    Attributes:
        backup: what was put back.
        store: where the store is.
        aside: where the one that was there is now; None if there was none.
        files: names of those that were put back beside it.
        accepted: what was done to the copy.
    """

    backup: Backup
    store: Path
    aside: Path | None
    files: tuple[str, ...]
    accepted: Restored


def restore_backup(source: Path, load: Callable[[], ServerSettings], principal: str) -> RestoredBackup:
    """Puts a backup back. Blocking.

    The store is replaced by the copy, which is put right (``application.restored``). The files beside it are put back
    where nothing is set up yet: keys and settings that are there are newer, or meant.

    Args:
        source: the backup.
        load: reads the settings; called again once missing ones are back.
        principal: who does it, for the audit log.

    Raises:
        BackupUnusable: it is none, or damaged; nothing was changed.
        StoreUnavailable: a controller serves the store; nothing was changed.
        FileUnusable: the data directory is another account's; nothing was changed.
        OSError: it cannot be written; the store that was there still is.
    """
    with open_backup(source) as (backup, archive), ExitStack() as stack:
        settings = load()
        directory, store = settings.directory, settings.store_path
        _check_owner(directory.root)
        make_secret_directory(directory.root)
        _lock(store, stack)
        files = put_files(archive, backup, directory)
        settings = load()
        if settings.store_path != store:
            store = settings.store_path
            _lock(store, stack)
        copy = stack.enter_context(_staging(store.parent)) / store.name
        extract_store(archive, copy)
        check_copy(copy)
        accepted = trio.run(_accept, settings, copy, principal)
        failpoints.passing("restore.ready")
        aside = _set_aside(store)
        failpoints.passing("restore.aside")
        copy.rename(store)
        sync_directory(store.parent)
        failpoints.passing("restore.placed")
    trio.run(_sign, settings)
    return RestoredBackup(backup=backup, store=store, aside=aside, files=files, accepted=accepted)


async def _accept(settings: ServerSettings, copy: Path, principal: str) -> Restored:
    files, organization = AuditFiles(settings.directory), settings.server.organization
    async with open_store(copy, create=False) as store:
        return await accept_restore(store, files, clock=WallClock(), organization=organization, principal=principal)


async def _sign(settings: ServerSettings) -> None:
    async with open_store(settings.store_path, exclusive=False, create=False) as store:
        await sign_anew(store, AuditFiles(settings.directory), clock=WallClock())


def _check_owner(root: Path) -> None:
    owner = root.stat().st_uid if root.exists() else os.geteuid()
    if owner != os.geteuid():
        name = pwd.getpwuid(owner).pw_name
        raise FileUnusable(f"{root} belongs to {name}; run this as {name}: sudo -u {name} …", path=str(root))


def _lock(store: Path, stack: ExitStack) -> None:
    lock = StoreLock(store)
    stack.callback(lock.close)
    lock.acquire()


@contextmanager
def _staging(parent: Path) -> Iterator[Path]:
    for left in parent.glob(f"{_STAGING}*"):
        shutil.rmtree(left)  # of one that was killed
    staging = Path(mkdtemp(prefix=_STAGING, dir=parent))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _set_aside(store: Path) -> Path | None:
    """Renames what is there of a store and says how it is called now; the file first: without it nobody starts."""
    there = [name for name in ("", *_BESIDE) if store.with_name(store.name + name).exists()]
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    aside = store.with_name(f"{store.name}.replaced-{stamp}")
    for name in there:
        store.with_name(store.name + name).rename(aside.with_name(aside.name + name))
    return aside if "" in there else None
