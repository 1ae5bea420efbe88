"""Starting, reading, watching and cancelling jobs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import structlog
import trio

from shovey_trio.application.audit import caller_key
from shovey_trio.application.grants import Grants
from shovey_trio.application.job_audit import cancelled_entry, started_entry
from shovey_trio.application.job_request import JobDefaults, StartJob, check_kill_grace, check_request, request_key
from shovey_trio.core import ids
from shovey_trio.core.errors import (
    Draining,
    JobElsewhere,
    NoTargets,
    NotFound,
    Overloaded,
    StoreUnavailable,
    UnknownNodes,
)
from shovey_trio.core.jobs.job_machine import admit, request_cancel
from shovey_trio.core.jobs.model import (
    Job,
    Node,
    OutputChunk,
    OutputExtent,
    Presence,
    Principal,
    Run,
    StreamName,
)
from shovey_trio.core.jobs.quorum import required_nodes
from shovey_trio.core.jobs.states import JobState, RunState
from shovey_trio.core.jobs.targeting import resolve
from shovey_trio.nursery.directory import Elsewhere, Ended, Here, JobDirectory
from shovey_trio.nursery.handles import JobHandle
from shovey_trio.nursery.registry import NodeRegistry
from shovey_trio.nursery.services import Services
from shovey_trio.nursery.supervisor import Supervisor
from shovey_trio.nursery.watch import WatchPosition, follow_output, watch_job
from shovey_trio.store.contract import (
    AuditStore,
    GrantStore,
    JobFeed,
    JobFilter,
    JobHistory,
    JobOverview,
    JobSnapshot,
    OutputStore,
    StoredEvent,
)

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")

# What keeps a new job from being made, and says nothing about one that was made before.
_NO_NEW_JOB = (Draining, Overloaded, StoreUnavailable, NoTargets, UnknownNodes)
# Between two looks of somebody who waits: a job of thousands of runs commits all the time.
_LOOK_PAUSE = 0.1
# Runs that are made before other tasks get a turn: 10 µs each.
_MADE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedTarget:
    """A node a job would go to, and how."""

    node: str
    up: bool
    route: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedJob:
    """The job, and for a dry run the nodes it would go to."""

    job: Job
    targets: tuple[ResolvedTarget, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelledJob:
    """What a cancel did: which runs are being cancelled, and which had ended before."""

    job: Job
    cancelling: tuple[str, ...]
    already_finished: tuple[str, ...]


class JobsStore(JobHistory, JobFeed, OutputStore, GrantStore, AuditStore, Protocol):
    """What of a store the use cases of jobs need."""


class Jobs:
    """Jobs of the controller."""

    def __init__(
        self,
        *,
        store: JobsStore,
        services: Services,
        supervisor: Supervisor,
        registry: NodeRegistry,
        defaults: JobDefaults,
    ) -> None:
        self._store = store
        self._services = services
        self._supervisor = supervisor
        self._registry = registry
        self._defaults = defaults
        self._directory = JobDirectory(store, supervisor)
        self.grants = Grants(store, registry)

    # -- start

    async def start(self, principal: Principal, request: StartJob) -> StartedJob:
        """Starts a job; durable when it returns.

        Nodes that are down get a run that is ``unavailable`` from the start; when fewer nodes are up than the quorum
        asks for, nothing is sent and the job is ``quorum_failed``. Both are decided before the job is stored, so that
        the first commit already holds them.

        A request that was made before gets its job, whatever could keep a new one from being made now.

        Raises:
            InvalidRequest, InvalidQuorum, NoTargets, UnknownNodes, VotingUnsupported: nothing was stored.
            PermissionDenied: the principal's grants do not cover the command on every node; nothing was stored.
            RequestIdReused, Overloaded, Draining, StoreUnavailable: nothing was stored.
        """
        check_request(request, self._defaults)
        try:
            return await self._start(principal, request)
        except _NO_NEW_JOB as error:
            failure = error
        # Not asked before every start: it is a read, and hardly ever finds anything.
        made = await self._made_before(principal, request)
        if made is None:
            raise failure
        return StartedJob(job=made)

    async def _start(self, principal: Principal, request: StartJob) -> StartedJob:
        nodes = self._registry.of(principal.organization)
        targets = resolve(request.selection, nodes, accept_unknown=request.accept_unknown)
        rule = await self.grants.demand(principal, request.command, targets)
        quorum = request.quorum or "100%"
        required_nodes(quorum, len(targets))
        up = [name for name in targets if name in nodes and nodes[name].presence is Presence.UP]
        job = self._new_job(principal, request, quorum, len(targets))
        decided = admit(job, len(up), job.created_at)
        if request.dry_run:
            resolved = tuple(self.resolved(nodes[name]) for name in targets if name in nodes)
            return StartedJob(job=replace(decided, id=""), targets=resolved)
        runs: list[Run] = []
        for name in targets:
            runs.append(self._new_run(decided, name, nodes.get(name)))
            if len(runs) % _MADE == 0:
                await trio.lowlevel.checkpoint()
        decided = replace(decided, run_counts=dict(Counter(run.state for run in runs)))
        created = await self._supervisor.launch(
            decided,
            runs,
            request_key(principal, request),
            request.input,
            audit=started_entry(decided, runs, principal, rule),
        )
        return StartedJob(job=created.job)

    async def _made_before(self, principal: Principal, request: StartJob) -> Job | None:
        key = None if request.dry_run else request_key(principal, request)
        if key is None:
            return None
        try:
            return await self._store.find_request(key)
        except StoreUnavailable as error:
            # What is wrong with the start itself is the better answer.
            _log.warning("request.not_looked_up", error=error.message)
            return None

    def _new_job(self, principal: Principal, request: StartJob, quorum: str, total: int) -> Job:
        now = self._services.clock.now()
        return Job(
            id=ids.job_id(now, self._services.random_bytes(10)),
            organization=principal.organization,
            command=request.command,
            quorum=quorum,
            run_timeout=self._defaults.run_timeout if request.run_timeout is None else request.run_timeout,
            kill_grace=self._defaults.kill_grace if request.kill_grace is None else request.kill_grace,
            created_by=principal.label,
            epoch=self._services.epoch,
            created_at=now,
            updated_at=now,
            run_total=total,
            input=request.input.record(),
        )

    def _new_run(self, job: Job, name: str, node: Node | None) -> Run:
        run = Run(
            id=ids.run_id(job.id, name),
            job_id=job.id,
            organization=job.organization,
            node=name,
            created_at=job.created_at,
            updated_at=job.created_at,
            released_at=job.created_at,
            nonce=self._services.new_nonce(),
            # Whoever is enrolled under this name from now on is somebody else, and gets nothing that waits for it.
            agent_instance=None if node is None else node.agent_instance or None,
            # Decided here, for the life of the run: an order must never go out by two routes.
            route=None if node is None else node.kind,
        )
        if job.state is JobState.QUORUM_FAILED:
            cause, detail = "quorum_failed", "nothing was sent: too few nodes were up"
        elif node is None:
            cause, detail = "node_unknown", "no node of this name is registered"
        elif unsupported := self._services.routes.of_node(node).unsupported(job):
            cause, detail = "input_unsupported", unsupported
        elif node.presence is not Presence.UP:
            cause, detail = "node_down", f"the node was {node.presence.value} ({node.presence_reason})"
        else:
            return run
        return replace(run, state=RunState.UNAVAILABLE, cause=cause, detail=detail, finished_at=job.created_at)

    def resolved(self, node: Node) -> ResolvedTarget:
        """How an order would reach a node now."""
        way = self._services.routes.of_node(node).way(node)
        return ResolvedTarget(node=node.name, up=node.presence is Presence.UP, route=way)

    # -- read

    async def get(self, principal: Principal, job_id: str) -> tuple[Job, Mapping[RunState, int]]:
        """A job with the present counts of its runs.

        Raises:
            NotFound: no such job in the principal's organization.
        """
        await trio.lowlevel.checkpoint()
        match await self._directory.find(principal.organization, job_id):
            case Here(handle=live):
                return live.stored, self.counts(live.stored)
            case Elsewhere(job=job):
                # What its row says of its runs is as old as the row.
                return job, await self._store.count_runs(job.organization, job.id)
            case Ended(job=job):
                return job, self.counts(job)
            case None:
                raise NotFound(f"there is no job {job_id}", job_id=job_id)

    def counts(self, job: Job) -> Mapping[RunState, int]:
        """How many runs of a job are in which state: from its nursery while it lives, as last written after that."""
        live = self._supervisor.job(job.id)
        return job.run_counts if live is None or job.is_terminal else +live.counts

    async def list_jobs(
        self, principal: Principal, where: JobFilter, *, limit: int, after: str
    ) -> tuple[Sequence[Job], str]:
        """Jobs, newest first; see ``Store.list_jobs``."""
        return await self._store.list_jobs(
            replace(where, organization=principal.organization), limit=limit, after=after
        )

    async def overview(self, principal: Principal, job_id: str) -> JobOverview:
        """A job with how far each of its runs is, as of one commit.

        Raises:
            NotFound: no such job in the principal's organization.
        """
        overview = await self._store.job_overview(principal.organization, job_id)
        if overview is None:
            raise NotFound(f"there is no job {job_id}", job_id=job_id)
        return overview

    async def get_run(self, principal: Principal, job_id: str, node: str) -> tuple[Run, OutputExtent]:
        """A run with the extent of its durable output.

        Raises:
            NotFound: no such run in the principal's organization.
        """
        run = await self._store.get_run(principal.organization, job_id, node)
        if run is None:
            raise NotFound(f"job {job_id} has no run on {node}", job_id=job_id, node=node)
        return run, await self._store.output_extent(run.id)

    async def list_runs(
        self, principal: Principal, job_id: str, *, states: frozenset[RunState], limit: int, after: str
    ) -> tuple[Sequence[Run], Mapping[str, OutputExtent], str]:
        """Runs of a job by node name, with the extents of their output.

        Raises:
            NotFound: no such job in the principal's organization.
        """
        if await self._store.get_job(principal.organization, job_id) is None:
            raise NotFound(f"there is no job {job_id}", job_id=job_id)
        runs, token = await self._store.list_runs(
            principal.organization, job_id, states=states, limit=limit, after=after
        )
        return runs, await self._store.output_extents([run.id for run in runs]), token

    async def watch(
        self,
        principal: Principal,
        job_id: str,
        *,
        position: WatchPosition | None,
        include_output: bool,
        snapshot: Callable[[JobSnapshot, WatchPosition], Awaitable[None]],
        event: Callable[[StoredEvent, WatchPosition], Awaitable[None]],
    ) -> None:
        """Feeds a watcher until the job is terminal; see ``nursery.watch.watch_job``."""
        await watch_job(
            store=self._store,
            hub=self._services.hub,
            who=caller_key(),
            organization=principal.organization,
            job_id=job_id,
            position=position,
            include_output=include_output,
            snapshot=snapshot,
            event=event,
        )

    async def until(self, job_id: str, look: Callable[[], Awaitable[_T | None]]) -> _T:
        """Looks now and after the job's commits, at most ten times a second, until ``look`` returns something.

        Raises:
            Overloaded: too many watchers.
            And whatever ``look`` raises.
        """
        hub = self._services.hub
        with hub.watching(job_id, who=caller_key()):
            while True:
                mark = hub.mark(job_id)
                found = await look()
                if found is not None:
                    return found
                await hub.wait(job_id, mark)
                await trio.sleep(_LOOK_PAUSE)

    async def read_output(
        self,
        principal: Principal,
        job_id: str,
        node: str,
        *,
        stream: StreamName | None,
        offset: int,
        follow: bool,
        chunk: Callable[[OutputChunk], Awaitable[None]],
    ) -> None:
        """Feeds a reader with output; see ``nursery.watch.follow_output``."""
        await follow_output(
            store=self._store,
            hub=self._services.hub,
            who=caller_key(),
            organization=principal.organization,
            job_id=job_id,
            node=node,
            stream=stream,
            offset=offset,
            follow=follow,
            chunk=chunk,
        )

    async def read_page(self, run: Run, *, stream: StreamName | None, offset: int, limit: int) -> Sequence[OutputChunk]:
        """A stretch of the durable output of a run that the caller was given; see ``Store.read_output``."""
        return await self._store.read_output(run.id, stream=stream, offset=offset, limit=limit)

    # -- cancel

    async def cancel(
        self, principal: Principal, job_id: str, nodes: Sequence[str], *, kill_grace: float | None = None
    ) -> CancelledJob:
        """Asks for the cancel of all runs, or of those of some nodes; the request is durable when it returns.

        Args:
            kill_grace: seconds between TERM and KILL from now on, for the whole job; None leaves it as it is. Unlike
                the cancel itself it is not kept over a restart.

        Raises:
            InvalidRequest: ``kill_grace`` is longer than permitted; nothing is cancelled.
            NotFound: no such job in the principal's organization.
            UnknownNodes: a node the job has no run on; nothing is cancelled.
            PermissionDenied: the principal's grants do not cover the command on every node; nothing is cancelled.
            JobElsewhere: some runs of a job that does not live here; nothing is cancelled.
        """
        check_kill_grace(kill_grace, self._defaults)
        match await self._directory.find(principal.organization, job_id):
            case Here(handle=live):
                return await self._cancel_here(principal, live, nodes, kill_grace)
            case Elsewhere(job=job):
                return await self._cancel_elsewhere(principal, job, nodes)
            case Ended(job=job):
                names = {run.node for run in await self._all_runs(job)}
                chosen = sorted(set(nodes)) or sorted(names)
                _check_known(job.id, chosen, names)
                return CancelledJob(job=job, cancelling=(), already_finished=tuple(chosen))
            case None:
                raise NotFound(f"there is no job {job_id}", job_id=job_id)

    async def _cancel_here(
        self, principal: Principal, live: JobHandle, nodes: Sequence[str], kill_grace: float | None
    ) -> CancelledJob:
        names = sorted(set(nodes)) or sorted(live.runs)
        _check_known(live.job.id, names, live.runs)
        rule = await self.grants.demand(principal, live.job.command, names)
        asked_for = cancelled_entry(live.stored, nodes, principal, rule, self._services.clock.now())
        if kill_grace is not None:
            live.job = replace(live.job, kill_grace=kill_grace)
        if nodes:
            # Before it is done: what was asked is on record even if only a part of it is done when power fails.
            await self._store.append_audit([asked_for])
        audit = None if nodes else asked_for
        asked = await self._supervisor.cancel(live, names, by=principal.label, whole_job=not nodes, audit=audit)
        finished = sorted(set(names) - set(asked))
        return CancelledJob(job=live.job, cancelling=tuple(asked), already_finished=tuple(finished))

    async def _cancel_elsewhere(self, principal: Principal, job: Job, nodes: Sequence[str]) -> CancelledJob:
        """Makes the request durable; whoever takes the job up carries it out."""
        if nodes:
            text = f"job {job.id} is not taken up by this controller yet; cancel it whole, or ask again"
            raise JobElsewhere(text, retry_after_s="5")
        runs = await self._all_runs(job)
        rule = await self.grants.demand(principal, job.command, [run.node for run in runs])
        now = self._services.clock.now()
        job = request_cancel(job, now)
        await self._services.store.write_job(job, audit=cancelled_entry(job, nodes, principal, rule, now))
        return CancelledJob(
            job=job,
            cancelling=tuple(run.node for run in runs if not run.is_terminal),
            already_finished=tuple(run.node for run in runs if run.is_terminal),
        )

    async def _all_runs(self, job: Job) -> Sequence[Run]:
        found: list[Run] = []
        after = ""
        while True:
            page, after = await self._store.list_runs(
                job.organization, job.id, states=frozenset(), limit=1000, after=after
            )
            found += page
            if not after:
                return found


def _check_known(job_id: str, names: Sequence[str], known: Mapping[str, object] | set[str]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UnknownNodes(
            f"job {job_id} has no run on {', '.join(unknown[:20])}", job_id=job_id, nodes=",".join(unknown[:1000])
        )
