"""The nursery, put together: what runs jobs, as one value that the daemon and the tests' rigs open alike."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import trio

from shovey_trio.nursery.inbound import AgentInbox, Foreign, nobody_minds
from shovey_trio.nursery.links import Links
from shovey_trio.nursery.ports import Doorbell, NurseryClock, SendFollow
from shovey_trio.nursery.presence import NodePresence
from shovey_trio.nursery.recovery import take_up_jobs
from shovey_trio.nursery.registry import NodeRegistry
from shovey_trio.nursery.route import Routes
from shovey_trio.nursery.services import Services
from shovey_trio.nursery.settings import Bounds, Timing
from shovey_trio.nursery.supervisor import Supervisor, open_supervisor
from shovey_trio.nursery.watch import CommitHub
from shovey_trio.store.contract import CommitNews, LiveJobs


class EngineStore(LiveJobs, CommitNews, Protocol):
    """What of a store the nursery uses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Running jobs and what they need. Made by ``open_engine``.

    Attributes:
        helpers: the nursery of what serves all jobs; whoever listens to nodes of another kind does it there.
    """

    services: Services
    supervisor: Supervisor
    registry: NodeRegistry
    doorbell: Doorbell
    presence: NodePresence
    inbox: AgentInbox
    helpers: trio.Nursery

    @property
    def links(self) -> Links:
        return self.services.links

    async def take_up_jobs(self) -> int:
        """Opens a nursery for every job that the last start left unfinished; returns how many there were."""
        return await take_up_jobs(self.services.store, self.supervisor)


@asynccontextmanager
async def open_engine(
    store: EngineStore,
    *,
    registry: NodeRegistry,
    links: Links,
    routes: Routes,
    doorbell: Doorbell,
    clock: NurseryClock,
    epoch: int,
    timing: Timing,
    bounds: Bounds,
    foreign: Foreign = nobody_minds,
) -> AsyncIterator[Engine]:
    """Opens the scope of all jobs, with what serves them; none is taken up yet (``Engine.take_up_jobs``).

    Leaving the block stops supervising; live jobs stay in the store as they are.

    Args:
        store: open; its commits wake watchers from now on.
        registry: with the nodes loaded.
        links: agents' streams; none is open yet.
        routes: to every kind of node.
        doorbell: over serf.
        clock: the time of this process.
        epoch: of this start.
        timing: the nursery's times.
        bounds: how much may live at a time.
        foreign: is told when a node speaks of another node's run.

    Raises:
        StoreCorrupt: the store is beyond use.
    """

    def follow_changed(job_id: str, node: str | None, followed: bool) -> None:
        tell_followed(supervisor, links, job_id, node, followed)

    hub = CommitHub(max_watchers=bounds.watchers, per_caller=bounds.watchers_per_caller, follow_changed=follow_changed)
    store.on_commit(hub.committed)
    services = Services(
        store=store,
        links=links,
        routes=routes,
        hub=hub,
        clock=clock,
        epoch=epoch,
        timing=timing,
        bounds=bounds,
    )
    async with trio.open_nursery() as helpers, open_supervisor(services) as supervisor:
        presence = NodePresence(
            registry=registry,
            links=links,
            doorbell=doorbell,
            clock=clock,
            timing=timing,
            runs_of_node=supervisor.runs_of_node,
        )
        presence.begin()
        # They need not have begun: what is noted for them before waits for them.
        for route in (routes.agents, *routes.others.values()):
            helpers.start_soon(route.serve)  # noqa: ASYNC113
        helpers.start_soon(presence.serve)  # noqa: ASYNC113
        helpers.start_soon(presence.serve_members)  # noqa: ASYNC113
        try:
            yield Engine(
                services=services,
                supervisor=supervisor,
                registry=registry,
                doorbell=doorbell,
                presence=presence,
                inbox=AgentInbox(services=services, supervisor=supervisor, presence=presence, foreign=foreign),
                helpers=helpers,
            )
        finally:
            helpers.cancel_scope.cancel(reason="the controller stops")


def tell_followed(supervisor: Supervisor, links: Links, job_id: str, node: str | None, followed: bool) -> None:
    """Tells the agents of a job's live runs to flush output often, or seldom again."""
    job = supervisor.job(job_id)
    if job is None:
        return
    for live in job.runs.values() if node is None else filter(None, [job.runs.get(node)]):
        link = None if live.run.is_terminal else links.get(live.run.organization, live.run.node)
        if link is not None:
            link.send_nowait(SendFollow(run_id=live.run.id, followed=followed))
