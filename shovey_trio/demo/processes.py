"""Programs of this project as real processes: started with a log each, ended by their own pid."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import trio

_TERM_DEADLINE = 15.0
_KILL_DEADLINE = 5.0


class ProcessFailed(Exception):
    """A program ended when it should not have; the message ends with its last log lines."""


def program(name: str) -> list[str]:
    """The command of one of the three programs, of the environment this interpreter belongs to."""
    script = Path(sys.executable).with_name(name)
    if script.exists():
        return [str(script)]
    modules = {
        "shovey": "shovey_trio.cli.operator.main",
        "shovey-trio": "shovey_trio.cli.controller.main",
        "shovey-agent": "shovey_agent.cli",
    }
    return [sys.executable, "-c", f"from {modules[name]} import main; main()"]


def run_as(account: str) -> list[str]:
    """What to put before a command so that it runs as another account, by the same process id; nothing for our own.

    Where the interpreter lies in a directory that is closed to others (a home of root's, say), the command may read
    past file modes; it writes, signals and connects as that account all the same.
    """
    found = pwd.getpwnam(account)
    if found.pw_uid == os.geteuid():
        return []
    command = ["setpriv", f"--reuid={found.pw_uid}", f"--regid={found.pw_gid}", "--clear-groups"]
    interpreter = Path(sys.executable).resolve()
    if not all(directory.stat().st_mode & 0o001 for directory in interpreter.parents):
        command += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return command


class ManagedProcess:
    """A program that may be started, stopped, killed and started again.

    Its standard error and output go to ``log``. It has a session of its own, so that Ctrl-C on a terminal reaches
    only whoever manages it.
    """

    def __init__(self, command: Sequence[str], *, log: Path, environ: Mapping[str, str] | None = None) -> None:
        self.command = list(command)
        self.log = log
        self._environ = {**os.environ, **(environ or {})}
        self._process: trio.Process | None = None

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    async def start(self) -> None:
        """Starts it; returns at once."""
        with self.log.open("ab") as log:
            self._process = await trio.lowlevel.open_process(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=self._environ,
            )

    async def wait(self) -> int:
        """Waits for its end and returns its exit code."""
        assert self._process is not None
        return await self._process.wait()

    async def stop(self) -> int | None:
        """TERM, and KILL if that does not help in time. Shielded, with a deadline; None if it was not running."""
        return await self._end(signal.SIGTERM, _TERM_DEADLINE)

    async def kill(self) -> int | None:
        """KILL."""
        return await self._end(signal.SIGKILL, _KILL_DEADLINE)

    def send_signal(self, number: signal.Signals) -> None:
        """Signals it, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def check(self) -> None:
        """Raises ``ProcessFailed`` if it has ended."""
        if self._process is not None and self._process.poll() is not None:
            raise ProcessFailed(f"{Path(self.command[0]).name} ended with {self._process.returncode}:\n{self.tail()}")

    def tail(self, lines: int = 15) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-lines:])

    async def _end(self, number: signal.Signals, deadline: float) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        with trio.CancelScope(deadline=trio.current_time() + deadline, shield=True):
            if process.poll() is None:
                process.send_signal(number)
            return await process.wait()
        process.kill()
        with trio.CancelScope(deadline=trio.current_time() + _KILL_DEADLINE, shield=True):
            await process.wait()
        return process.returncode
