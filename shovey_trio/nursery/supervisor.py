"""All live jobs: one task per job in one nursery, and the index by which messages find their run."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager

import structlog
import trio

from shovey_trio.core.errors import Draining, Overloaded
from shovey_trio.core.model import Job, OutputExtent, Run
from shovey_trio.nursery.handles import JobHandle, RunHandle
from shovey_trio.nursery.job_scope import supervise_job
from shovey_trio.nursery.links import NodeKey
from shovey_trio.nursery.services import Services

_log = structlog.get_logger(__name__)
_NOTHING_STORED = OutputExtent()


class Supervisor:
    """Live jobs and runs. Made by ``open_supervisor``; its nursery is the ``async with`` block's."""

    def __init__(self, services: Services, nursery: trio.Nursery) -> None:
        self._services = services
        self._nursery = nursery
        self._jobs: dict[str, JobHandle] = {}
        self._runs: dict[str, RunHandle] = {}
        self._by_node: dict[NodeKey, dict[str, RunHandle]] = {}
        self._reserved_jobs = 0
        self._reserved_runs = 0
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

    @asynccontextmanager
    async def admission(self, runs: int) -> AsyncIterator[None]:
        """Room for a job of so many runs, kept while it is made durable; ``admit`` it inside.

        Raises:
            Draining: the daemon is stopping.
            Overloaded: as many jobs or runs live as there may be.
        """
        if self.draining:
            raise Draining("the controller is stopping and takes no more jobs", retry_after_s="10")
        bounds = self._services.bounds
        if len(self._jobs) + self._reserved_jobs >= bounds.live_jobs:
            raise Overloaded(f"{bounds.live_jobs} jobs are running", limit="live_jobs", retry_after_s="5")
        if len(self._runs) + self._reserved_runs + runs > bounds.live_runs:
            message = f"{len(self._runs)} runs are live; {runs} more would pass {bounds.live_runs}"
            raise Overloaded(message, limit="live_runs", retry_after_s="5")
        self._reserved_jobs += 1
        self._reserved_runs += runs
        try:
            yield
        finally:
            self._reserved_jobs -= 1
            self._reserved_runs -= runs

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
