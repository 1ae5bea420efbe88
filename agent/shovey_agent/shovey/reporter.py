"""Reporting a run: that it runs, its output piece by piece, and – when all of that has arrived – how it ended.

schob sends the end before the last of the output, so that whoever reads at the end misses some. Here the order is: the
run runs; all output; the last pieces, marked as such; the end. What the server has taken is noted, so that an agent
that is killed goes on with the next. A disk that is full delays a report and loses none.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final, TypeVar

import structlog
import trio

from shovey_agent.run.executor import Executor
from shovey_agent.run.runs import ExitCause, RunPhase
from shovey_agent.shovey.progress import Progress, ProgressFiles
from shovey_agent.shovey.server import ShoveyServer
from shovey_trio.core.jobs.events import RunReport
from shovey_trio.core.jobs.model import StreamName
from shovey_trio.observe.threads import run_in_thread
from shovey_trio.shovey.protocol.report import SIGNAL_WORDS, PutStatus, RunPut, run_put_body, stream_put_body

_T = TypeVar("_T")
_log = structlog.get_logger(__name__)
# One piece of output. A hundred times schob's, and far below the 1,000,000 bytes that goiardi takes.
_PIECE: Final = 64 * 1024
_CONFLICT: Final = 409
_DISK_RETRY: Final = 5.0


class RunReporter:
    """Reports the runs of one node; one task per run that is not reported yet."""

    def __init__(
        self,
        *,
        executor: Executor,
        server: ShoveyServer,
        files: ProgressFiles,
        node: str,
        nursery: trio.Nursery,
    ) -> None:
        self._executor = executor
        self._server = server
        self._files = files
        self._node = node
        self._nursery = nursery
        # By run id; bounded by the number of runs in the spool.
        self._news: dict[str, trio.Event] = {}

    def note(self, run_id: str) -> None:
        """Notes that there is something new to report of a run."""
        event = self._news.get(run_id)
        if event is None:
            self._news[run_id] = trio.Event()
            self._nursery.start_soon(self._report, run_id)
        else:
            event.set()

    async def say(self, run_id: str, put: RunPut) -> int:
        """Reports a status of its own accord; returns the HTTP status of the answer."""
        return await self._server.put_run(run_id, run_put_body(put, node=self._node, run_id=run_id))

    async def _report(self, run_id: str) -> None:
        try:
            progress = await _on_disk(lambda: self._files.load(run_id))
            while True:
                news = self._news[run_id] = trio.Event()
                known = self._executor.known_run(run_id)
                if known is None:
                    return
                if known.phase is not RunPhase.ACCEPTED:
                    progress = await self._say_running(run_id, progress)
                    progress = await self._ship(run_id, progress)
                if known.phase is RunPhase.FINISHED and known.exit is not None:
                    await self._finish(run_id, progress, known.exit)
                    return
                await news.wait()
        finally:
            self._news.pop(run_id, None)

    async def _say_running(self, run_id: str, progress: Progress) -> Progress:
        known = self._executor.known_run(run_id)
        if progress.running or known is None or known.started_at is None:
            return progress
        await self.say(run_id, RunPut(status=PutStatus.RUNNING))
        return await self._save(run_id, replace(progress, running=True))

    async def _ship(self, run_id: str, progress: Progress) -> Progress:
        """Sends what is in the spool and was not sent."""
        while True:
            progress = await self._deliver(run_id, progress)
            chunks = await self._executor.read_output(run_id, progress.position, _PIECE)
            if not chunks:
                return progress
            progress = await self._save(run_id, progress.with_chunk(chunks[0]))

    async def _finish(self, run_id: str, progress: Progress, report: RunReport) -> None:
        if report.started_at is not None:
            for stream in (StreamName.STDERR, StreamName.STDOUT):
                if stream not in progress.ended:
                    progress = await self._save(run_id, progress.with_last(stream))
                    progress = await self._deliver(run_id, progress)
        put = end_of(report, node=self._node)
        status = await self.say(run_id, put)
        _log.info("run.reported", run_id=run_id, status=put.status.value, answer=status)
        await _until_done(lambda: self._executor.mark_reported(run_id))
        await self._executor.forget(run_id)
        await _on_disk(lambda: self._files.remove(run_id))

    async def _deliver(self, run_id: str, progress: Progress) -> Progress:
        piece = progress.pending
        if piece is None:
            return progress
        status = await self._server.put_stream(run_id, stream_put_body(piece, node=self._node, run_id=run_id))
        if status >= 400 and status != _CONFLICT:
            _log.warning("output.refused", run_id=run_id, stream=piece.stream.value, seq=piece.seq, answer=status)
        return await self._save(run_id, progress.delivered())

    async def _save(self, run_id: str, progress: Progress) -> Progress:
        await _on_disk(lambda: self._files.save(run_id, progress))
        return progress


def end_of(report: RunReport, *, node: str) -> RunPut:
    """A run's end in schob's words."""
    match report.cause:
        case ExitCause.EXITED if report.exit_code == 0:
            return RunPut(status=PutStatus.SUCCEEDED)
        case ExitCause.EXITED:
            code = report.exit_code or 0
            return RunPut(status=PutStatus.FAILED, exit_status=code, error=f"exit status {code}")
        case ExitCause.SIGNALLED:
            word = SIGNAL_WORDS.get(report.signal or 0, f"signal {report.signal}")
            return RunPut(status=PutStatus.FAILED, exit_status=255, error=f"signal: {word}")
        case ExitCause.TIMED_OUT:
            return RunPut(status=PutStatus.FAILED, error=f"Job {report.run_id} on node {node} timed out")
        case ExitCause.CANCELLED:
            return RunPut(status=PutStatus.CANCELLED, error=f"Job {report.run_id} on node {node} was cancelled")
        case ExitCause.SPAWN_FAILED:
            return RunPut(status=PutStatus.INVALID, error=f"fork/exec {report.detail}")
        case _:
            why = report.detail or report.cause
            return RunPut(status=PutStatus.KILLED, error=f"job {report.run_id} on node {node} was killed: {why}")


async def _on_disk(work: Callable[[], _T]) -> _T:
    async def attempt() -> _T:
        return await run_in_thread(work)

    return await _until_done(attempt)


async def _until_done(work: Callable[[], Awaitable[_T]]) -> _T:
    while True:
        try:
            return await work()
        except OSError as error:
            _log.warning("report.disk", error=error.strerror, retry_in=_DISK_RETRY)
            await trio.sleep(_DISK_RETRY)
