"""One run in this process: started or adopted, then followed until its supervisor is gone."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

import structlog
import trio

from shovey_agent.run.bury import StillSupervised, abandon_run, bury_run, find_guardian, find_supervisor
from shovey_agent.run.output_reader import OutputReader
from shovey_agent.run.runs import (
    ExitCause,
    Finished,
    KnownRun,
    OutputGrown,
    RunEvent,
    RunPhase,
    Started,
)
from shovey_agent.run.spool import Spool
from shovey_agent.run.zygote_client import LaunchFailed, Zygote, receive_pidfds
from shovey_agent.supervisor.proc_posix import boot_id, elapsed_clock
from shovey_agent.supervisor.spool_files import OUTPUT
from shovey_trio.core.jobs.events import RunReport
from shovey_trio.observe.threads import run_in_thread

_log = structlog.get_logger()
_T = TypeVar("_T")

# After the machine was out of descriptors, memory or disk. The command goes on meanwhile.
_RETRY_S = 1.0
_MESSAGE_BYTES = 64
# Longer than a guardian takes at most (``KILL_PATIENCE_S``) for a tree that resists.
_GUARDIAN_PATIENCE_S = 75.0


class RunFollower:
    """Follows one run.

    Attributes:
        known: the run as it is now.
        reader: of its output.
    """

    def __init__(
        self,
        known: KnownRun,
        *,
        spool: Spool,
        zygote: Zygote,
        send: trio.MemorySendChannel[RunEvent],
        disk: trio.CapacityLimiter,
        poll_interval: float,
    ) -> None:
        self.known = known
        self._output = os.path.join(spool.directory(known.run_id), OUTPUT)
        self.reader = OutputReader(self._output)
        self._spool = spool
        self._zygote = zygote
        self._send = send
        self._disk = disk
        self._poll_interval = poll_interval
        self._pause: trio.CancelScope | None = None
        self._seen_bytes = 0
        self._pidfd: int | None = None
        self._guardian: int | None = None

    async def run(self, *, fresh: bool) -> None:
        """Follows the run until its end has been told.

        Cancelled, only the following ends. No exception leaves: what the machine lacks is waited for, and a bug of ours
        ends this one run.

        Args:
            fresh: nobody has been asked to supervise it yet.
        """
        try:
            while True:
                try:
                    await self._attach(fresh=fresh)
                    await self._watch()
                    await self._finish()
                    return
                except StillSupervised:
                    _log.info("run.found_supervised", run=self.known.run_id)
                except (OSError, LaunchFailed) as error:
                    _log.warning("run.follow_retried", run=self.known.run_id, error=str(error))
                    await trio.sleep(_RETRY_S)
                fresh = False
        except Exception as error:  # noqa: BLE001 -- a bug in one run must not reach the others
            _log.exception("run.follow_failed", run=self.known.run_id)
            await self._abandon(error)
        finally:
            self._close()

    def set_poll_interval(self, seconds: float) -> None:
        """Sets how often the log is looked at, from now on."""
        self._poll_interval = seconds
        if self._pause is not None:
            self._pause.deadline = min(self._pause.deadline, trio.current_time() + seconds)

    def note_cancelling(self) -> None:
        """Has supervisor and guardian look at the cancel request that is in the spool."""
        self.known = replace(self.known, cancelling=True)
        _signal(self._pidfd, signal.SIGUSR1)
        _signal(self._guardian, signal.SIGUSR1)

    def note_reported(self) -> None:
        self.known = replace(self.known, reported=True)

    async def _attach(self, *, fresh: bool) -> None:
        if not fresh:
            self._close()
            self._pidfd = await self._on_disk(partial(find_supervisor, self._spool, self.known.run_id))
            self._guardian = await self._on_disk(partial(find_guardian, self._spool, self.known.run_id))
            # An agent that died between taking a run and asking for its supervisor has left it to the next one.
            fresh = self._pidfd is None and await self._on_disk(self._is_waiting)
        if fresh:
            with await self._zygote.launch(self._spool.directory(self.known.run_id)) as channel:
                await self._listen(channel)
            # It was asked for and never came up; as long as the run may be started, it is asked for again.
            if self._pidfd is None and await self._on_disk(self._is_waiting):
                raise LaunchFailed("no supervisor could be forked")
        if self.known.cancelling:
            # The request may be older than the supervisor's signal handler, or this process.
            self.note_cancelling()

    def _is_waiting(self) -> bool:
        return self._spool.is_waiting(self.known.run_id, boot_id=boot_id(), elapsed=elapsed_clock())

    async def _listen(self, channel: trio.socket.SocketType) -> None:
        """Hears what a new supervisor says, until it has said all."""
        while True:
            try:
                word, ancillary, _, _ = await channel.recvmsg(
                    _MESSAGE_BYTES, socket.CMSG_SPACE(8), socket.MSG_CMSG_CLOEXEC
                )
            except ConnectionError:
                return
            match word:
                case b"ready":
                    self._pidfd, self._guardian, *_ = (*receive_pidfds(ancillary), None, None)
                    if self.known.cancelling:
                        self.note_cancelling()
                case b"started":
                    await self._note_started(default=time.time())
                case _:
                    return

    async def _watch(self) -> None:
        """Waits for the supervisor's end, looking at the log now and then."""
        if self._pidfd is None:
            return
        while True:
            # A command may have stopped it. To one that runs this is nothing.
            _signal(self._guardian, signal.SIGCONT)
            await self._look()
            with trio.move_on_after(self._poll_interval) as self._pause:
                await trio.lowlevel.wait_readable(self._pidfd)
                return

    async def _look(self) -> None:
        if self.known.started_at is None:
            await self._note_started(default=None)
        try:
            size = os.stat(self._output).st_size
        except FileNotFoundError:
            return
        if size != self._seen_bytes:
            # A full channel: told at the next look, since the size is not noted.
            with contextlib.suppress(trio.WouldBlock):
                self._send.send_nowait(OutputGrown(run_id=self.known.run_id))
                self._seen_bytes = size

    async def _note_started(self, *, default: float | None) -> None:
        loaded = await self._on_disk(partial(self._spool.load, self.known.run_id))
        at = default if loaded is None or loaded.started_at is None else loaded.started_at
        if at is not None and self.known.started_at is None:
            self.known = replace(self.known, phase=RunPhase.RUNNING, started_at=at)
            await self._send.send(Started(run_id=self.known.run_id, at=at))

    async def _finish(self) -> None:
        run_id = self.known.run_id
        report = await self._on_disk(partial(self._spool.exit_report, run_id))
        if report is None:
            await self._wait_for_guardian()
            report = await self._on_disk(partial(bury_run, self._spool, run_id))
            _log.error("run.lost", run=run_id, cause=report.cause, detail=report.detail)
        if report.started_at is not None and self.known.started_at is None:
            await self._send.send(Started(run_id=run_id, at=report.started_at))
        await self._tell_finished(report)

    async def _wait_for_guardian(self) -> None:
        """Waits until the guardian has ended what its supervisor left; it gives up by itself."""
        with trio.move_on_after(_GUARDIAN_PATIENCE_S):
            while self._guardian is not None:
                _signal(self._guardian, signal.SIGCONT)
                with trio.move_on_after(_RETRY_S):
                    await trio.lowlevel.wait_readable(self._guardian)
                    return

    async def _abandon(self, error: Exception) -> None:
        run_id = self.known.run_id
        try:
            report = await self._on_disk(partial(abandon_run, self._spool, run_id))
        except (OSError, StillSupervised) as disk_error:
            cause = ExitCause.SUPERVISOR_LOST
            report = RunReport(
                run_id=run_id,
                outcome=cause.outcome,
                cause=cause,
                detail=f"{error!r}, and no record could be written: {disk_error}",
                started_at=self.known.started_at,
                finished_at=time.time(),
            )
        await self._tell_finished(report)

    async def _tell_finished(self, report: RunReport) -> None:
        self.known = replace(self.known, phase=RunPhase.FINISHED, started_at=report.started_at, exit=report)
        await self._send.send(Finished(report=report))

    def _close(self) -> None:
        for pidfd in (self._pidfd, self._guardian):
            if pidfd is not None:
                os.close(pidfd)
        self._pidfd = self._guardian = None

    async def _on_disk(self, work: Callable[[], _T]) -> _T:
        return await run_in_thread(work, limiter=self._disk)


def _signal(pidfd: int | None, signum: int) -> None:
    if pidfd is not None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signum)
