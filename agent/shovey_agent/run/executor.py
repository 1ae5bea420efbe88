"""The executor: what the agent does with commands that may run.

It makes a run durable, has a supervisor started for it, follows it, and tells how it ends. It holds no truth of its
own: all of it is in the spool, so that an agent that is killed and started again adopts every run as it is.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from shovey_agent.run.follower import RunFollower
from shovey_agent.run.runs import (
    Accepted,
    CancelOutcome,
    CancelReason,
    Duplicate,
    ExecutorRefusal,
    KnownRun,
    Refused,
    RunEvent,
    RunPhase,
    RunSpec,
    StartOutcome,
)
from shovey_agent.run.spool import RunExists, Spool, SpoolError, SpoolFull, SpoolLimits, is_run_id
from shovey_agent.run.state_lock import hold_state_directory
from shovey_agent.run.zygote_client import Zygote, open_zygote
from shovey_agent.supervisor.cgroup import remove_empty_groups
from shovey_agent.supervisor.proc_posix import boot_id
from shovey_trio.core.jobs.model import OutputChunk
from shovey_trio.observe.threads import run_in_thread

_T = TypeVar("_T")

# An event is a few words: 256 of them are some 50 KiB. A consumer that falls behind further delays the followers, not
# the commands; nothing is lost, since growth is told again and an end is told when there is room.
_EVENT_BUFFER = 256
# Every fsync and every read of a log goes through these threads. The disk is one, more would only queue there.
_DISK_THREADS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorConfig:
    """Settings of the executor.

    Attributes:
        state_dir: absolute; runs are kept in ``runs`` below it.
        max_runs: most commands at a time; further ones are refused as ``busy``.
        poll_interval: seconds between two looks at a running command's log, unless set for the run.
        cgroup: a cgroup of version 2 that is ours to divide (see ``find_delegated_cgroup``), or None.
    """

    state_dir: Path
    max_runs: int = 64
    poll_interval: float = 1.0
    limits: SpoolLimits = field(default_factory=SpoolLimits)
    cgroup: str | None = None


class Executor:
    """The runs of this node. Use ``open_executor``.

    Attributes:
        events: what happens to the runs, in order for each run. One consumer.
    """

    def __init__(
        self,
        *,
        config: ExecutorConfig,
        spool: Spool,
        zygote: Zygote,
        nursery: trio.Nursery,
    ) -> None:
        self._config = config
        self._spool = spool
        self._zygote = zygote
        self._nursery = nursery
        self._accepting = trio.Lock()
        self._disk = trio.CapacityLimiter(_DISK_THREADS)
        self._followers: dict[str, RunFollower] = {}
        self._send, self.events = trio.open_memory_channel[RunEvent](_EVENT_BUFFER)

    def known_runs(self) -> tuple[KnownRun, ...]:
        """Returns all runs in the spool, as they are now."""
        return tuple(follower.known for follower in self._followers.values())

    def known_run(self, run_id: str) -> KnownRun | None:
        """Returns one run as it is now, or None when this node does not know it."""
        follower = self._followers.get(run_id)
        return None if follower is None else follower.known

    async def start(self, spec: RunSpec) -> StartOutcome:
        """Takes a run and has it started.

        ``Accepted`` means durable. Called again with the same run id, whatever happened in between, nothing is started
        and the answer is ``Duplicate``. Cancelled, the run was taken entirely or not at all; ``known_run`` tells.
        """
        if (problem := _problem_of(spec)) is not None:
            return Refused(reason=ExecutorRefusal.INVALID_SPEC, detail=problem)
        async with self._accepting:
            if (follower := self._followers.get(spec.run_id)) is not None:
                return Duplicate(run=follower.known)
            if (busy := self._why_busy(spec)) is not None:
                return Refused(reason=ExecutorRefusal.BUSY, detail=busy)
            accepted_at = time.time()
            create = partial(
                self._spool.create,
                spec,
                accepted_at=accepted_at,
                boot_id=boot_id(),
                cgroup=self._config.cgroup,
            )
            try:
                await self._on_disk(create)
            except RunExists:
                return await self._rediscovered(spec.run_id)
            except SpoolFull as error:
                return Refused(reason=ExecutorRefusal.SPOOL_FULL, detail=str(error))
            except SpoolError as error:
                return Refused(reason=ExecutorRefusal.SPOOL_ERROR, detail=str(error))
            known = KnownRun(
                run_id=spec.run_id,
                job_id=spec.job_id,
                epoch=spec.epoch,
                accepted_at=accepted_at,
                command=spec.command,
                lock=spec.lock,
            )
            self._nursery.start_soon(partial(self._add(known).run, fresh=True))
            return Accepted(run=known)

    async def cancel(self, run_id: str, *, grace: float, reason: CancelReason = CancelReason.CANCEL) -> CancelOutcome:
        """Asks for a run's end: SIGTERM, ``grace`` seconds, SIGKILL. The outcome comes as its ``Finished``.

        The request is durable when this returns. Asking again changes nothing: the first request stands. Cancelled, the
        request was made entirely or not at all.

        Raises:
            OSError: the request could not be written; nothing was asked.
        """
        follower = self._followers.get(run_id)
        if follower is None:
            return CancelOutcome.UNKNOWN_RUN
        if follower.known.phase is RunPhase.FINISHED:
            return CancelOutcome.ALREADY_FINISHED
        await self._on_disk(partial(self._spool.request_cancel, run_id, reason=reason, grace=max(0.0, grace)))
        follower.note_cancelling()
        return CancelOutcome.REQUESTED

    async def adopt(self) -> tuple[KnownRun, ...]:
        """Takes over every run that is in the spool; to be called once, before the first ``start``.

        Runs that live are followed, runs that ended are known with their report, and runs that nobody supervises any
        more are ended. For each run that is not finished yet its ``Finished`` will come; for those that are, none does.

        Returns:
            The runs, each as it was found.
        """
        async with self._accepting:
            await self._on_disk(self._spool.sweep_removed)
            self._remove_empty_groups()
            for run_id in await self._on_disk(lambda: list(self._spool.run_ids())):
                if run_id not in self._followers:
                    await self._adopt_run(run_id)
        return self.known_runs()

    async def read_output(self, run_id: str, position: int, limit: int) -> tuple[OutputChunk, ...]:
        """Returns up to ``limit`` bytes of output from ``position`` on, in chunks of at most 64 KiB.

        An empty answer means that there is nothing there yet, or no such run.
        """
        follower = self._followers.get(run_id)
        if follower is None:
            return ()
        return await self._on_disk(partial(follower.reader.read, position, limit))

    def set_poll_interval(self, run_id: str, seconds: float) -> None:
        """Sets how often a running command's log is looked at: short while somebody follows."""
        if (follower := self._followers.get(run_id)) is not None:
            follower.set_poll_interval(seconds)

    async def mark_reported(self, run_id: str) -> None:
        """Notes durably that the controller has the run's report.

        Raises:
            OSError: it could not be noted.
        """
        if (follower := self._followers.get(run_id)) is not None:
            await self._on_disk(partial(self._spool.mark_reported, run_id))
            follower.note_reported()

    async def forget(self, run_id: str) -> bool:
        """Deletes a finished run with its output; returns whether there was one. Others are left alone."""
        follower = self._followers.get(run_id)
        if follower is None or follower.known.phase is not RunPhase.FINISHED:
            return False
        del self._followers[run_id]
        await self._on_disk(partial(self._spool.remove, run_id))
        self._remove_empty_groups()
        return True

    async def _rediscovered(self, run_id: str) -> StartOutcome:
        """A directory that no ``adopt`` has seen: whoever made it, the run is taken."""
        await self._adopt_run(run_id)
        known = self.known_run(run_id)
        if known is None:
            return Refused(reason=ExecutorRefusal.SPOOL_ERROR, detail="the run's directory comes and goes")
        return Duplicate(run=known)

    async def _adopt_run(self, run_id: str) -> None:
        known = await self._on_disk(partial(self._spool.load, run_id))
        if known is None:
            return
        follower = self._add(known)
        if known.phase is not RunPhase.FINISHED:
            self._nursery.start_soon(partial(follower.run, fresh=False))

    def _add(self, known: KnownRun) -> RunFollower:
        follower = RunFollower(
            known,
            spool=self._spool,
            zygote=self._zygote,
            send=self._send,
            disk=self._disk,
            poll_interval=self._config.poll_interval,
        )
        self._followers[known.run_id] = follower
        return follower

    def _remove_empty_groups(self) -> None:
        if self._config.cgroup is not None:
            remove_empty_groups(self._config.cgroup)

    def _why_busy(self, spec: RunSpec) -> str | None:
        """Why there is no place for a run now, or None."""
        active = [run for run in self.known_runs() if run.phase is not RunPhase.FINISHED]
        if len(active) >= self._config.max_runs:
            return f"{self._config.max_runs} commands are running"
        if spec.lock and any(run.lock == spec.lock for run in active):
            return f"another command holds the lock {spec.lock}"
        if spec.concurrency and sum(run.command == spec.command for run in active) >= spec.concurrency:
            return f"{spec.concurrency} of {spec.command!r} are running"
        return None

    async def _on_disk(self, work: Callable[[], _T]) -> _T:
        return await run_in_thread(work, limiter=self._disk)


@asynccontextmanager
async def open_executor(config: ExecutorConfig) -> AsyncIterator[Executor]:
    """Opens the executor; at the end following stops and the commands go on.

    Raises:
        OSError: the state directory cannot be made.
        StateDirectoryTaken: another agent works in it.
    """
    spool = Spool(config.state_dir, config.limits)
    await run_in_thread(spool.prepare)
    with hold_state_directory(config.state_dir):
        async with open_zygote() as zygote, trio.open_nursery() as nursery:
            yield Executor(config=config, spool=spool, zygote=zygote, nursery=nursery)
            nursery.cancel_scope.cancel(reason="the executor closes; its runs go on")


def _problem_of(spec: RunSpec) -> str | None:
    """Returns why a spec could not be run as it is, or None."""
    environment = (*spec.env, *spec.env.values(), *spec.secrets.env, *spec.secrets.env.values())
    words = (*spec.argv, spec.cwd, spec.node, spec.job_id, *environment)
    if not is_run_id(spec.run_id):
        return "the run id is not one"
    if not spec.argv or not spec.argv[0]:
        return "there is no program"
    if any("\0" in word for word in words):
        return "no program can be given a NUL"
    if not (0 < spec.timeout < math.inf and 0 <= spec.grace < math.inf):
        return "timeout and grace must be finite, the timeout above 0"
    return None
