"""The nursery with fakes around it: what ``controller`` wires up, without serf, gRPC, files or threads.

On ``nursery.clock.TrioClock`` and a ``MemoryStore`` everything happens on virtual time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lab.fake_agents import FakeAgent
from lab.fake_doorbell import FakeDoorbell
from shovey_trio.application.jobs import JobDefaults, Jobs, StartJob
from shovey_trio.core.jobs.model import Job, LinkMode, Node, Presence, Principal, Role, Run
from shovey_trio.core.jobs.targeting import Names
from shovey_trio.core.trust.order_signing import SigningKey
from shovey_trio.nursery.dispatch import Dispatcher
from shovey_trio.nursery.inbound import AgentInbox
from shovey_trio.nursery.links import Links
from shovey_trio.nursery.ports import Clock, Doorbell, OrderSigner
from shovey_trio.nursery.presence import NodePresence
from shovey_trio.nursery.recovery import take_up_jobs
from shovey_trio.nursery.registry import NodeRegistry
from shovey_trio.nursery.services import Services
from shovey_trio.nursery.settings import Bounds, Timing
from shovey_trio.nursery.supervisor import Supervisor, open_supervisor
from shovey_trio.nursery.watch import CommitHub
from shovey_trio.rpc.signer import Signer
from shovey_trio.store.contract import Store

ORGANIZATION = "default"
OPERATOR = Principal(organization=ORGANIZATION, role=Role.OPERATOR, name="ops")


def make_signer(organization: str = ORGANIZATION) -> Signer:
    """A signer with a key of its own."""
    key = SigningKey(key_id="test", private_key=Ed25519PrivateKey.generate(), created_at=0.0)
    return Signer({organization: key})


@dataclass(frozen=True, slots=True, kw_only=True)
class NurseryRig:
    """A controller's insides, to be driven by tests. Made by ``open_rig``."""

    services: Services
    supervisor: Supervisor
    presence: NodePresence
    registry: NodeRegistry
    inbox: AgentInbox
    jobs: Jobs
    nursery: trio.Nursery

    @property
    def links(self) -> Links:
        return self.services.links

    async def register(self, names: Iterable[str], *, mode: LinkMode = LinkMode.ATTACHED, up: bool = True) -> None:
        """Registers nodes, as enrolment does; ``up``: as if each had been attached before."""
        now = self.services.clock.now()
        presence = Presence.UP if up else Presence.NEW
        for name in names:
            node = Node(
                name=name,
                organization=ORGANIZATION,
                link=mode,
                enrolled_at=now,
                presence=presence,
                presence_since=now,
                last_seen_at=now,
            )
            await self.registry.put(node)

    async def start(
        self, *nodes: str, quorum: str = "", run_timeout: float = 60.0, kill_grace: float = 10.0, request_id: str = ""
    ) -> Job:
        """Starts a job on these nodes."""
        request = StartJob(
            command="work",
            selection=Names(names=nodes),
            quorum=quorum,
            run_timeout=run_timeout,
            kill_grace=kill_grace,
            request_id=request_id,
        )
        return (await self.jobs.start(OPERATOR, request)).job

    async def ended(self, job_id: str) -> Job:
        """The job once its nursery has closed and its end is durable."""
        live = self.supervisor.job(job_id)
        if live is not None:
            await live.ended.wait()
        job = await self.services.store.get_job(ORGANIZATION, job_id)
        assert job is not None
        return job

    async def run(self, job_id: str, node: str) -> Run:
        """A run as the store has it."""
        run = await self.services.store.get_run(ORGANIZATION, job_id, node)
        assert run is not None
        return run

    def live_run(self, job_id: str, node: str) -> Run:
        """A run as its task sees it."""
        job = self.supervisor.job(job_id)
        assert job is not None
        return job.runs[node].run

    def crash(self, agents: Iterable[FakeAgent] = ()) -> None:
        """Kills the controller: agents' streams break, and every task of it dies wherever it is."""
        for agent in agents:
            agent.disconnect()
        for link in self.links:
            link.close("the controller was killed")
        self.nursery.cancel_scope.cancel(reason="the controller was killed")


@asynccontextmanager
async def open_rig(
    store: Store,
    *,
    clock: Clock,
    doorbell: Doorbell | None = None,
    signer: OrderSigner | None = None,
    timing: Timing | None = None,
    bounds: Bounds | None = None,
) -> AsyncIterator[NurseryRig]:
    """Runs a controller's insides for the block, with the unfinished jobs of ``store`` taken up; leaving it stops them.

    Raises:
        StoreCorrupt: as the controller would.
    """
    bounds, timing = bounds or Bounds(), timing or Timing()
    links = Links()
    bell: Doorbell = doorbell or FakeDoorbell()
    hub = CommitHub(max_watchers=bounds.watchers)
    store.on_commit(hub.committed)
    registry = NodeRegistry(store)
    await registry.load()
    services = Services(
        store=store,
        links=links,
        dispatcher=Dispatcher(links=links, doorbell=bell, timing=timing),
        signer=signer or make_signer(),
        hub=hub,
        clock=clock,
        epoch=await store.next_epoch(clock.now()),
        timing=timing,
        bounds=bounds,
    )
    async with trio.open_nursery() as nursery, open_supervisor(services) as supervisor:
        presence = NodePresence(
            registry=registry,
            links=links,
            doorbell=bell,
            clock=clock,
            timing=timing,
            runs_of_node=supervisor.runs_of_node,
        )
        presence.begin()
        # They need not have begun: what is noted for them before waits for them.
        nursery.start_soon(services.dispatcher.serve)  # noqa: ASYNC113
        nursery.start_soon(presence.serve)  # noqa: ASYNC113
        nursery.start_soon(presence.serve_members)  # noqa: ASYNC113
        await take_up_jobs(store, supervisor)
        yield NurseryRig(
            services=services,
            supervisor=supervisor,
            presence=presence,
            registry=registry,
            inbox=AgentInbox(services=services, supervisor=supervisor, presence=presence, links=links),
            jobs=Jobs(
                services=services,
                supervisor=supervisor,
                registry=registry,
                doorbell=bell,
                defaults=JobDefaults(),
            ),
            nursery=nursery,
        )
        nursery.cancel_scope.cancel(reason="the rig is done")
