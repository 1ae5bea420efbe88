"""All live jobs: one task per job in one nursery, and the index by which messages find their run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import trio
from outcome import Error, Outcome, Value

from shovey_trio.core.audit.records import AuditEntry
from shovey_trio.core.errors import Draining, Overloaded, StoreCorrupt
from shovey_trio.core.jobs.command_input import NO_INPUT, CommandInput
from shovey_trio.core.jobs.model import Job, OutputExtent, Run
from shovey_trio.nursery.handles import JobHandle, RunHandle
from shovey_trio.nursery.job_scope import cancel_runs, supervise_job
from shovey_trio.nursery.links import NodeKey
from shovey_trio.nursery.services import Services
from shovey_trio.store.contract import CreatedJob, RequestKey

_T = TypeVar("_T")
_NOTHING_STORED = OutputExtent()
# Runs whose handles are made before other tasks get a turn: 5 µs each.
_PREPARED = 500


class Supervisor:
    """Live jobs and runs. Made by ``open_supervisor``; its nursery is the ``async with`` block's."""

    def __init__(self, services: Services, nursery: trio.Nursery) -> None:
        self.services = services
        self._nursery = nursery
        self._jobs: dict[str, JobHandle] = {}
        self._runs: dict[str, RunHandle] = {}
        self._by_node: dict[NodeKey, dict[str, RunHandle]] = {}
        # Of every job that is being made durable or lives; ended runs of a live job count, they are still in memory.
        self._held_jobs = 0
        self._held_runs = 0
        self.draining = False

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def live_runs(self) -> int:
        """Runs of all jobs that live or are being made durable; ended ones of theirs count."""
        return self._held_runs

    def job(self, job_id: str) -> JobHandle | None:
        return self._jobs.get(job_id)

    def run(self, run_id: str) -> RunHandle | None:
        """A live run; None when it has ended, even if its job has not."""
        live = self._runs.get(run_id)
        return None if live is None or live.is_closed else live

    def runs_of_node(self, organization: str, node: str) -> list[RunHandle]:
        """The node's live runs; a copy, because posting to one may end it."""
        return [live for live in self._by_node.get((organization, node), {}).values() if not live.is_closed]

    def all_runs(self) -> list[RunHandle]:
        """Every run that has not ended; a copy."""
        return [live for live in self._runs.values() if not live.is_closed]

    def live_jobs(self) -> Iterable[JobHandle]:
        return self._jobs.values()

    async def launch(
        self,
        job: Job,
        runs: Sequence[Run],
        request: RequestKey | None,
        given: CommandInput = NO_INPUT,
        *,
        audit: AuditEntry | None = None,
    ) -> CreatedJob:
        """Makes a job durable and supervises it, unless it was made before or is terminal from the start.

        Cancelling the caller cancels neither: a job that is durable is supervised, whether or not anybody hears of it.

        Raises:
            Draining: the daemon is stopping.
            Overloaded: as many jobs or runs live as there may be.
            RequestIdReused: see ``Store.create_job``.
            StoreUnavailable: nothing was stored.
        """
        self._check_room(len(runs))
        self._hold(len(runs))

        async def create() -> CreatedJob:
            try:
                # Before the job is durable and can be seen: from then on it is live at once, in one step.
                handle = await self._prepare(job, runs, given)
                created = await self.services.store.create_job(job, runs, request, stdin=given.stdin, audit=audit)
                if created.created and not job.is_terminal:
                    self._open(handle)
            finally:
                self._let_go(len(runs))
            return created

        return await self._see_through(create)

    async def cancel(
        self, handle: JobHandle, nodes: Sequence[str], *, by: str, whole_job: bool, audit: AuditEntry | None = None
    ) -> list[str]:
        """Asks runs of a live job to end; see ``cancel_runs``. Cancelling the caller does not cut it in half."""

        async def ask() -> list[str]:
            return await cancel_runs(handle, nodes, by=by, whole_job=whole_job, services=self.services, audit=audit)

        return await self._see_through(ask)

    def admit(
        self,
        job: Job,
        runs: Sequence[Run],
        extents: Mapping[str, OutputExtent] | None = None,
        *,
        given: CommandInput = NO_INPUT,
    ) -> JobHandle:
        """Opens the nursery of a durable, running job.

        Args:
            job: as stored.
            runs: all of its runs, terminal ones too.
            extents: durable output by run id, for a job that is taken up again.
            given: what its command is given; without secrets for a job that is taken up again.
        """
        handle = JobHandle(job=job, clock=self.services.clock, input=given, taken_up=True)
        for run in runs:
            handle.add(run, (extents or {}).get(run.id, _NOTHING_STORED), self.services.routes.of_run(run))
        self._open(handle)
        return handle

    async def _prepare(self, job: Job, runs: Sequence[Run], given: CommandInput) -> JobHandle:
        """The handle of a job that is about to be stored, made in slices so that other tasks get their turns."""
        handle = JobHandle(job=job, clock=self.services.clock, input=given)
        for number, run in enumerate(runs, 1):
            handle.add(run, _NOTHING_STORED, self.services.routes.of_run(run))
            if number % _PREPARED == 0:
                await trio.lowlevel.checkpoint()
        return handle

    def _open(self, handle: JobHandle) -> None:
        handle.supervised_since = trio.current_time()
        for live in handle.runs.values():
            if not live.is_closed:
                run = live.run
                self._runs[run.id] = live
                self._by_node.setdefault((run.organization, run.node), {})[run.id] = live
        self._jobs[handle.job.id] = handle
        self._hold(len(handle.runs))
        self._nursery.start_soon(self._supervise, handle)

    def _check_room(self, runs: int) -> None:
        if self.draining:
            raise Draining("the controller is stopping and takes no more jobs", retry_after_s="10")
        bounds = self.services.bounds
        if self._held_jobs >= bounds.live_jobs:
            raise Overloaded(f"{bounds.live_jobs} jobs are running", limit="live_jobs", retry_after_s="5")
        if self._held_runs + runs > bounds.live_runs:
            message = f"{self._held_runs} runs are live; {runs} more would pass {bounds.live_runs}"
            raise Overloaded(message, limit="live_runs", retry_after_s="5")

    def _hold(self, runs: int) -> None:
        self._held_jobs += 1
        self._held_runs += runs

    def _let_go(self, runs: int) -> None:
        self._held_jobs -= 1
        self._held_runs -= runs

    async def _see_through(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """Does ``work`` in the nursery of all jobs, so that it goes on when the caller is cancelled.

        What it raises is the caller's to handle; only what is wrong with the shared store ends the nursery as well.
        """
        result: list[Outcome[_T]] = []
        done = trio.Event()

        async def perform() -> None:
            try:
                result.append(Value(await work()))
            except Exception as error:
                result.append(Error(error))
                if isinstance(error, StoreCorrupt):
                    raise
            except BaseException:
                result.append(Error(Draining("the controller is stopping", retry_after_s="10")))
                raise
            finally:
                done.set()

        self._nursery.start_soon(perform)
        await done.wait()
        return result[0].unwrap()

    async def _supervise(self, handle: JobHandle) -> None:
        try:
            await supervise_job(handle, self.services)
        finally:
            self._forget(handle)

    def _forget(self, handle: JobHandle) -> None:
        del self._jobs[handle.job.id]
        self._let_go(len(handle.runs))
        for live in handle.runs.values():
            run = live.run
            self._runs.pop(run.id, None)
            of_node = self._by_node.get((run.organization, run.node))
            if of_node is not None:
                of_node.pop(run.id, None)
                if not of_node:
                    del self._by_node[run.organization, run.node]


@asynccontextmanager
async def open_supervisor(services: Services) -> AsyncIterator[Supervisor]:
    """The scope of all jobs.

    Leaving it stops supervising: live jobs stay in the store as they are and are taken up again at the next start
    (``recovery``). What a failing shared service raises comes out here.
    """
    async with trio.open_nursery() as nursery:
        yield Supervisor(services, nursery)
        nursery.cancel_scope.cancel(reason="the controller stops; its jobs are handed to the next start")
