"""The agent's end of the zygote: asks it for supervisors, and starts it again when it is gone."""

from __future__ import annotations

import array
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar

import structlog
import trio

import shovey_agent
import shovey_trio
from shovey_trio.observe import failpoints
from shovey_trio.observe.threads import is_refused_thread

_log = structlog.get_logger()

_ATTEMPTS = 2
_CLOSE_DEADLINE_S = 2.0


class LaunchFailed(Exception):
    """No supervisor could be had: out of processes, memory or descriptors."""

    reason: ClassVar[str] = "LAUNCH_FAILED"


class Zygote:
    """Starts supervisors. Use ``open_zygote``."""

    def __init__(self) -> None:
        self._lock = trio.Lock()
        self._process: trio.Process | None = None
        self._control: trio.socket.SocketType | None = None

    @property
    def pid(self) -> int | None:
        """The zygote's pid, for the curious and for tests."""
        return None if self._process is None else self._process.pid

    async def launch(self, directory: str) -> trio.socket.SocketType:
        """Asks for a supervisor of a spool directory.

        Cancelled, the supervisor may or may not have been asked for: the spool tells.

        Returns:
            The supervisor's end of the conversation: ``ready`` with two pidfds, ``started``, end. An end without
            ``ready`` means that there is no supervisor. The caller closes it.

        Raises:
            LaunchFailed: it could not be asked.
        """
        async with self._lock:
            for _ in range(_ATTEMPTS):
                control = await self._connect()
                try:
                    return await self._ask(control, directory)
                except OSError as error:
                    _log.warning("zygote.lost", error=str(error))
                    await self.aclose()
        raise LaunchFailed("the zygote ends as soon as it is started")

    async def prepare(self) -> None:
        """Starts the zygote now, so that the first run does not wait for it.

        Raises:
            LaunchFailed: it cannot be started.
        """
        async with self._lock:
            await self._connect()

    async def aclose(self) -> None:
        """Ends the zygote; the supervisors it made live on."""
        if self._control is not None:
            self._control.close()
            self._control = None
        process, self._process = self._process, None
        if process is None:
            return
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_DEADLINE_S):
            # It ends by itself once the control socket is closed.
            await process.wait()
        if process.returncode is None:
            process.kill()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_DEADLINE_S):
                await process.wait()

    async def _connect(self) -> trio.socket.SocketType:
        if self._control is not None:
            return self._control
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                self._process = await trio.lowlevel.open_process(
                    [sys.executable, "-I", "-S", _program(), *_import_roots()],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    # Supervisors keep this environment in /proc: nothing in it may look like a run's mark.
                    env={"LANG": "C.UTF-8", **failpoints.environment()},
                    cwd="/",
                    start_new_session=True,
                )
        except (OSError, RuntimeError) as error:
            ours.close()
            if not isinstance(error, OSError) and not is_refused_thread(error):
                raise
            raise LaunchFailed(str(error)) from error
        except BaseException:
            ours.close()
            raise
        self._control = trio.socket.from_stdlib_socket(ours)
        return self._control

    async def _ask(self, control: trio.socket.SocketType, directory: str) -> trio.socket.SocketType:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [theirs.fileno()]))
                await control.sendmsg([os.fsencode(directory)], [rights])
            except BaseException:
                ours.close()
                raise
        return trio.socket.from_stdlib_socket(ours)


@asynccontextmanager
async def open_zygote() -> AsyncIterator[Zygote]:
    """Starts a zygote, and ends it, not the supervisors it made, at the end.

    One that cannot be started now is started for the first run that needs it.
    """
    zygote = Zygote()
    try:
        try:
            await zygote.prepare()
        except LaunchFailed as error:
            _log.error("zygote.refused", error=str(error))
        yield zygote
    finally:
        await zygote.aclose()


def receive_pidfds(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, ...]:
    """Returns the descriptors that came with a message. The caller closes them."""
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    return tuple(descriptors)


def _program() -> str:
    return str(Path(shovey_agent.__file__).parent / "supervisor" / "zygote.py")


def _import_roots() -> list[str]:
    """Where the two packages are: one directory when installed, two in a source tree."""
    roots = (Path(package.__file__ or "").resolve().parent.parent for package in (shovey_agent, shovey_trio))
    return [str(root) for root in dict.fromkeys(roots)]
