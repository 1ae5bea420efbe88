"""All live jobs: one task per job in one nursery, and the index by which messages find their run."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager

import trio
from outcome import Error, Outcome, Value

from shovey_trio.core.errors import Draining, Overloaded, ShoveyError, StoreCorrupt
from shovey_trio.core.model import Job, OutputExtent, Run
from shovey_trio.nursery.handles import JobHandle, RunHandle
from shovey_trio.nursery.job_scope import supervise_job
from shovey_trio.nursery.links import NodeKey
from shovey_trio.nursery.ports import CreatedJob, RequestKey
from shovey_trio.nursery.services import Services

_NOTHING_STORED = OutputExtent()


class Supervisor:
    """Live jobs and runs. Made by ``open_supervisor``; its nursery is the ``async with`` block's."""

    def __init__(self, services: Services, nursery: trio.Nursery) -> None:
        self._services = services
        self._nursery = nursery
        self._jobs: dict[str, JobHandle] = {}
        self._runs: dict[str, RunHandle] = {}
        self._by_node: dict[NodeKey, dict[str, RunHandle]] = {}
        self._launching_jobs = 0
        self._launching_runs = 0
        self.draining = False

    def __len__(self) -> int:
        return len(self._jobs)

    def job(self, job_id: str) -> JobHandle | None:
        return self._jobs.get(job_id)

    def run(self, run_id: str) -> RunHandle | None:
        return self._runs.get(run_id)

    def runs_of_node(self, organization: str, node: str) -> list[RunHandle]:
        """The node's live runs; a copy, because posting to one may end it."""
        return list(self._by_node.get((organization, node), {}).values())

    def live_jobs(self) -> Iterable[JobHandle]:
        return self._jobs.values()

    async def launch(self, job: Job, runs: Sequence[Run], request: RequestKey | None) -> CreatedJob:
        """Makes a job durable and supervises it, unless it was made before or is terminal from the start.

        Cancelling the caller cancels neither: a job that is durable is supervised, whether or not anybody hears of it.

        Raises:
            Draining: the daemon is stopping.
            Overloaded: as many jobs or runs live as there may be.
            RequestIdReused: see ``Store.create_job``.
            StoreUnavailable: nothing was stored.
        """
        self._check_room(len(runs))
        made: list[Outcome[CreatedJob]] = []
        durable = trio.Event()
        self._nursery.start_soon(self._launch, job, runs, request, made, durable)
        await durable.wait()
        return made[0].unwrap()

    def admit(self, job: Job, runs: Sequence[Run], extents: Mapping[str, OutputExtent] | None = None) -> JobHandle:
        """Opens the nursery of a durable, running job.

        Args:
            job: as stored.
            runs: all of its runs, terminal ones too.
            extents: durable output by run id, for a job that is taken up again.
        """
        handle = JobHandle(job=job, counts=Counter(run.state for run in runs))
        for run in runs:
            extent = (extents or {}).get(run.id, _NOTHING_STORED)
            live = RunHandle(run, moved=handle.moved, extent=extent)
            handle.runs[run.node] = live
            if not run.is_terminal:
                self._runs[run.id] = live
                self._by_node.setdefault((run.organization, run.node), {})[run.id] = live
        self._jobs[job.id] = handle
        self._nursery.start_soon(self._supervise, handle)
        return handle

    def _check_room(self, runs: int) -> None:
        if self.draining:
            raise Draining("the controller is stopping and takes no more jobs", retry_after_s="10")
        bounds = self._services.bounds
        if len(self._jobs) + self._launching_jobs >= bounds.live_jobs:
            raise Overloaded(f"{bounds.live_jobs} jobs are running", limit="live_jobs", retry_after_s="5")
        if len(self._runs) + self._launching_runs + runs > bounds.live_runs:
            message = f"{len(self._runs)} runs are live; {runs} more would pass {bounds.live_runs}"
            raise Overloaded(message, limit="live_runs", retry_after_s="5")

    async def _launch(
        self,
        job: Job,
        runs: Sequence[Run],
        request: RequestKey | None,
        made: list[Outcome[CreatedJob]],
        durable: trio.Event,
    ) -> None:
        self._launching_jobs += 1
        self._launching_runs += len(runs)
        try:
            created = await self._services.store.create_job(job, runs, request)
        except (ShoveyError, trio.Cancelled) as error:
            refused = Draining("the controller is stopping") if isinstance(error, trio.Cancelled) else error
            made.append(Error(refused))
            if isinstance(error, trio.Cancelled | StoreCorrupt):
                raise
        else:
            made.append(Value(created))
            if created.created and not job.is_terminal:
                self.admit(job, runs)
        finally:
            self._launching_jobs -= 1
            self._launching_runs -= len(runs)
            durable.set()

    async def _supervise(self, handle: JobHandle) -> None:
        try:
            await supervise_job(handle, self._services)
        finally:
            self._forget(handle)

    def _forget(self, handle: JobHandle) -> None:
        del self._jobs[handle.job.id]
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
