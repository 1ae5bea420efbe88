"""The launcher: the small root process of a split agent.

It owns what decides about commands – whitelist, keys, nonces, spool – and runs them; it talks to nobody but the
network part, on a Unix socket, and believes nothing that this says (``desk_server``). So whoever breaks into the part
that faces the network gains a process of an account without rights, which can drop orders and reports, and start or
end nothing.

``python -m shovey_agent.desk.launcher PLAN`` is what ``shovey-agent launcher`` becomes once the settings are read
(``replaced``).
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import socket
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":
    # structlog imports rich where it is installed, for tracebacks that are not wanted here: 8 MiB on every node.
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]  # None: importing it is an ImportError

import structlog
import trio

from shovey_agent.desk.launcher_plan import LauncherPlan
from shovey_agent.desk.launcher_trust import load_trust
from shovey_agent.desk.local import open_local_desk
from shovey_agent.desk.server import DeskServer
from shovey_agent.desk.whitelist_file import WhitelistFile, open_whitelist
from shovey_agent.program.replaced import run_replaced
from shovey_agent.program.startup_memory import settle_memory
from shovey_agent.run.executor import ExecutorConfig
from shovey_agent.run.spool import SpoolLimits
from shovey_agent.supervisor.cgroup import find_delegated_cgroup
from shovey_trio.core.errors import Code, Exit, ShoveyError
from shovey_trio.identity.files import check_secret_directory
from shovey_trio.observe.systemd import notify
from shovey_trio.observe.threads import run_in_thread

_log = structlog.get_logger(__name__)

# Connections that wait to be accepted.
_BACKLOG = 16


class LauncherUnusable(ShoveyError):
    """The launcher cannot be what it has to be: alone, with a socket of its own, and known to its network part."""

    reason, code, http, exit = "LAUNCHER_UNUSABLE", Code.FAILED_PRECONDITION, 500, Exit.USAGE


async def run_launcher(plan: LauncherPlan) -> None:
    """Runs the launcher until TERM or INT. Its commands go on without it; the next start adopts them.

    Raises:
        LauncherNotSetUp: this node was not enrolled for it.
        ShoveyError: a file, the whitelist or the network part's account is unusable; the message names it.
    """
    state_dir, address = Path(plan.state_dir), Path(plan.socket)
    check_secret_directory(state_dir)
    trust = await run_in_thread(load_trust, state_dir)
    peer = await run_in_thread(_account_id, plan.user)
    whitelist = await run_in_thread(lambda: open_whitelist(Path(plan.whitelist), guarded=True))
    config = ExecutorConfig(
        state_dir=state_dir,
        max_runs=plan.max_runs,
        limits=SpoolLimits(head_cap=plan.output_cap, total_cap=plan.spool_cap, max_processes=plan.max_processes),
        cgroup=find_delegated_cgroup(),
    )
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async with open_local_desk(config, identity=trust.identity, keys=trust.keys, whitelist=whitelist) as desk:
            server = DeskServer(desk=desk, trust=trust, peers=frozenset({peer, os.geteuid()}), now=time.time)
            with listening(address, owner=peer) as listener:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(server.serve, listener)
                    nursery.start_soon(settle_memory)
                    _log.info(
                        "launcher.ready",
                        node=trust.identity.node,
                        organization=trust.identity.organization,
                        socket=plan.socket,
                        peer=plan.user,
                        runs=len(desk.known_runs()),
                        commands=len(whitelist.current().entries),
                        cgroup=config.cgroup,
                    )
                    notify("READY=1")
                    async for number in signals:
                        if number != signal.SIGHUP:
                            break
                        await run_in_thread(_reload, whitelist)
                    notify("STOPPING=1")
                    nursery.cancel_scope.cancel(reason="the launcher was told to stop")
    _log.info("launcher.stopped")


@contextlib.contextmanager
def listening(path: Path, *, owner: int) -> Iterator[socket.socket]:
    """A Unix socket at ``path`` that ``owner`` alone may connect to, beside root; gone at the end.

    Raises:
        LauncherUnusable: the path is taken by something else, or others may write in its directory.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            _demand_own_directory(path.parent)
            if path.is_socket():
                path.unlink()  # of a launcher that was killed: the lock says that there is no other
            before = os.umask(0o177)
            try:
                listener.bind(os.fspath(path))
            finally:
                os.umask(before)
            if owner != os.geteuid():
                os.chown(path, owner, -1, follow_symlinks=False)
            listener.listen(_BACKLOG)
        except OSError as error:
            raise LauncherUnusable(f"{path}: {error.strerror or error}") from error
        try:
            yield listener
        finally:
            with contextlib.suppress(OSError):
                path.unlink()


def _demand_own_directory(directory: Path) -> None:
    """Where others could rename or link, they could have this process act on files of their choice."""
    found = directory.stat()
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or found.st_uid not in (0, os.geteuid()):
        raise LauncherUnusable(
            f"{directory} can be written by others (mode {stat.S_IMODE(found.st_mode):04o}, user {found.st_uid}):"
            " the launcher's socket needs a directory of root's"
        )


def _account_id(name: str) -> int:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise LauncherUnusable(f"there is no account {name!r} for the network part (launcher.user)") from None


def _reload(whitelist: WhitelistFile) -> None:
    whitelist.current()


if __name__ == "__main__":
    sys.exit(run_replaced(run_launcher, LauncherPlan(**json.loads(sys.argv[1]))))
