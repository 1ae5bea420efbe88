"""The store, opened by a command on the controller's host; the daemon may be running beside it."""

from __future__ import annotations

import getpass
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import click
import trio

from shovey_trio.application.audit import Actor, CallOrigin
from shovey_trio.application.audit_anchor import open_anchor
from shovey_trio.config.server import ServerSettings
from shovey_trio.core.errors import ShoveyError
from shovey_trio.identity.audit_files import AuditFiles
from shovey_trio.identity.files import FileUnusable
from shovey_trio.nursery.clock import WallClock
from shovey_trio.store.contract import Store
from shovey_trio.store.opening import open_store

T = TypeVar("T")


def run_with_store(path: Path, work: Callable[[Store], Awaitable[T]], *, create: bool = False) -> T:
    """Opens the store in an event loop of its own, does ``work`` and closes it; blocking.

    Args:
        path: the SQLite file.
        work: what to do with it.
        create: make the store; otherwise it must be there.

    Raises:
        FileUnusable: there is no store.
        And whatever the store or ``work`` raises.
    """
    if not create and not path.exists():
        raise FileUnusable(f"{path}: there is no store; run shovey-trio init", path=str(path))

    async def main() -> T:
        async with open_store(path, exclusive=create, create=create) as store:
            return await work(store)

    return trio.run(main)


def change_store(settings: ServerSettings, change: Callable[[Store, Actor], Awaitable[T]], *, tell: bool = True) -> T:
    """Has a use case change the store; a running controller reads users, nodes, keys and certificates again at once.

    Args:
        settings: of the organization that is changed.
        change: the use case.
        tell: False for what a controller looks up when it needs it.
    """
    actor = host_actor(settings.server.organization)

    async def work(store: Store) -> T:
        result = await change(store, actor)
        await _keep_beside(settings, store)
        return result

    result = run_with_store(settings.store_path, work)
    if tell:
        note_change(settings)
    return result


async def _keep_beside(settings: ServerSettings, store: Store) -> None:
    """Keeps what was changed beside the store, as the controller does, which may not be running."""
    if not settings.directory.audit_head.exists():
        return  # no controller has served it yet
    # The change is made; what is wrong with the log is the controller's to report.
    with suppress(ShoveyError, OSError):
        anchor = await open_anchor(store=store, file=AuditFiles(settings.directory), clock=WallClock())
        await anchor.sign_or_raise()


def note_change(settings: ServerSettings) -> None:
    """Has a running controller read everything again."""
    settings.directory.changed.touch(mode=0o600)


def host_actor(organization: str) -> Actor:
    """The account that runs the command (as sudo tells it, where it does): it owns the data directory."""
    context = click.get_current_context(silent=True)
    method = "" if context is None else context.command_path
    return Actor(
        organization=organization,
        label=f"host/{os.environ.get('SUDO_USER') or _account()}",
        at=time.time(),
        came=CallOrigin(method=method, peer="host", rule="owner of the data directory"),
    )


def _account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.geteuid()}"
