"""The nursery with fakes around it: what ``controller`` wires up, without serf, gRPC, files or threads.

On ``nursery.clock.TrioClock`` and a ``MemoryStore`` everything happens on virtual time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lab.fake_agents import FakeAgent
from lab.fake_doorbell import FakeDoorbell
from shovey_trio.application.job_request import JobDefaults, StartJob
from shovey_trio.application.jobs import Jobs
from shovey_trio.core.jobs.model import Job, LinkMode, Node, Presence, Principal, Role, Run
from shovey_trio.core.jobs.targeting import Names
from shovey_trio.core.trust.order_signing import SigningKey
from shovey_trio.nursery.engine import Engine, open_engine
from shovey_trio.nursery.inbound import AgentInbox
from shovey_trio.nursery.links import Links
from shovey_trio.nursery.ports import Doorbell, NurseryClock, OrderSigner
from shovey_trio.nursery.presence import NodePresence
from shovey_trio.nursery.registry import NodeRegistry
from shovey_trio.nursery.route import NodeRoute, Routes
from shovey_trio.nursery.services import Services
from shovey_trio.nursery.settings import Bounds, Timing
from shovey_trio.nursery.supervisor import Supervisor
from shovey_trio.routes.stream import StreamRoute
from shovey_trio.rpc.signer import ActiveKeySigner
from shovey_trio.store.contract import Store

ORGANIZATION = "default"
OPERATOR = Principal(organization=ORGANIZATION, role=Role.OPERATOR, name="ops")


def make_signer(organization: str = ORGANIZATION) -> ActiveKeySigner:
    """A signer with a key of its own."""
    key = SigningKey(key_id="test", private_key=Ed25519PrivateKey.generate(), created_at=0.0)
    return ActiveKeySigner({organization: key})


@dataclass(frozen=True, slots=True, kw_only=True)
class NurseryRig:
    """A controller's insides, to be driven by tests. Made by ``open_rig``."""

    engine: Engine
    store: Store
    jobs: Jobs
    nursery: trio.Nursery

    @property
    def services(self) -> Services:
        return self.engine.services

    @property
    def supervisor(self) -> Supervisor:
        return self.engine.supervisor

    @property
    def presence(self) -> NodePresence:
        return self.engine.presence

    @property
    def registry(self) -> NodeRegistry:
        return self.engine.registry

    @property
    def inbox(self) -> AgentInbox:
        return self.engine.inbox

    @property
    def links(self) -> Links:
        return self.engine.links

    async def register(self, names: Iterable[str], *, mode: str = LinkMode.ATTACHED, up: bool = True) -> None:
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
        job = await self.store.get_job(ORGANIZATION, job_id)
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
    clock: NurseryClock,
    doorbell: Doorbell | None = None,
    signer: OrderSigner | None = None,
    timing: Timing | None = None,
    bounds: Bounds | None = None,
    others: Mapping[str, NodeRoute] | None = None,
) -> AsyncIterator[NurseryRig]:
    """Runs a controller's insides for the block, with the unfinished jobs of ``store`` taken up; leaving it stops them.

    Raises:
        StoreCorrupt: as the controller would.
    """
    registry = NodeRegistry(store)
    await registry.load()
    links, bell, timing = Links(), doorbell or FakeDoorbell(), timing or Timing()
    stream = StreamRoute(links=links, doorbell=bell, signer=signer or make_signer(), timing=timing)
    opened = open_engine(
        store,
        registry=registry,
        links=links,
        routes=Routes(agents=stream, others=others or {}),
        doorbell=bell,
        clock=clock,
        epoch=await store.next_epoch(clock.now()),
        timing=timing,
        bounds=bounds or Bounds(),
    )
    async with trio.open_nursery() as nursery, opened as engine:
        await engine.take_up_jobs()
        yield NurseryRig(engine=engine, store=store, jobs=make_jobs(engine, store), nursery=nursery)
        nursery.cancel_scope.cancel(reason="the rig is done")


def make_jobs(engine: Engine, store: Store) -> Jobs:
    """The use cases of jobs on an engine, with the usual defaults."""
    return Jobs(
        store=store,
        services=engine.services,
        supervisor=engine.supervisor,
        registry=engine.registry,
        defaults=JobDefaults(),
    )
