"""The legacy route on virtual time: the real nursery and serf link around a fake serf cluster and a store in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lab.fake_serf import FakeSerfAgent, FakeSerfCluster, SeenQuery
from lab.nursery_rig import ORGANIZATION, make_jobs, make_signer
from shovey_trio.application.job_request import StartJob
from shovey_trio.application.jobs import Jobs
from shovey_trio.core.jobs.model import Node, Presence, Principal, Role, Run
from shovey_trio.core.jobs.states import RunState
from shovey_trio.core.jobs.targeting import Names
from shovey_trio.nursery.clock import TrioClock
from shovey_trio.nursery.engine import Engine, open_engine
from shovey_trio.nursery.links import Links
from shovey_trio.nursery.registry import NodeRegistry
from shovey_trio.nursery.route import Routes
from shovey_trio.nursery.services import Services
from shovey_trio.nursery.settings import Bounds, Timing
from shovey_trio.nursery.supervisor import Supervisor
from shovey_trio.routes.stream import StreamRoute
from shovey_trio.serf.doorbell import SerfDoorbell
from shovey_trio.serf.link import SerfLink, SerfSettings
from shovey_trio.shovey.keys import SchobKey, SchobKeyFile, SchobKeys, make_schob_key
from shovey_trio.shovey.kind import KIND
from shovey_trio.shovey.opening import ShoveyWing
from shovey_trio.shovey.route.bell import RING_EVENTS
from shovey_trio.shovey.route.keyring import SchobKeyring
from shovey_trio.shovey.route.reports import SchobReports
from shovey_trio.store.contract import Store

OPERATOR = Principal(organization=ORGANIZATION, role=Role.OPERATOR, name="ops")
CONTROLLER = f"{ORGANIZATION}:ctl"


@lru_cache
def one_key() -> SchobKey:
    """A key for the whole test process: making one takes longer than a test."""
    return make_schob_key(0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchobRig:
    """A controller's insides with old nodes, to be driven by tests."""

    cluster: FakeSerfCluster
    agent: FakeSerfAgent
    engine: Engine
    nodes: SchobReports
    jobs: Jobs

    @property
    def services(self) -> Services:
        return self.engine.services

    @property
    def supervisor(self) -> Supervisor:
        return self.engine.supervisor

    @property
    def registry(self) -> NodeRegistry:
        return self.engine.registry

    async def start(
        self, *names: str, command: str = "work", kill_grace: float = 10.0, run_timeout: float = 60.0
    ) -> str:
        """Starts a job and returns its id."""
        request = StartJob(
            command=command, selection=Names(names=names), run_timeout=run_timeout, kill_grace=kill_grace
        )
        return (await self.jobs.start(OPERATOR, request)).job.id

    def live(self, job_id: str, node: str) -> Run:
        """A run as its task sees it."""
        job = self.supervisor.job(job_id)
        assert job is not None
        return job.runs[node].run

    async def stored(self, job_id: str, node: str) -> Run:
        """A run as the store has it."""
        run = await self.services.store.get_run(ORGANIZATION, job_id, node)
        assert run is not None
        return run

    async def ended(self, job_id: str) -> None:
        """Waits for a job's end."""
        live = self.supervisor.job(job_id)
        if live is not None:
            await live.ended.wait()

    async def say(self, job_id: str, node: str, status: str, *, error: str = "", exit_status: int = 0) -> None:
        """A node's report."""
        body = {"status": status, "error": error, "exit_status": exit_status}
        await self.nodes.run_put(principal(node), job_id, node, body)

    async def send(
        self, job_id: str, node: str, seq: int, text: str, *, stream: str = "stdout", is_last: bool = False
    ) -> None:
        """A piece of a node's output."""
        body = {"output": text, "output_type": stream, "seq": seq, "is_last": is_last}
        await self.nodes.stream_put(principal(node), job_id, node, body)

    async def output(self, job_id: str, node: str) -> bytes:
        """All of a run's output that is durable."""
        run = await self.stored(job_id, node)
        chunks = await self.services.store.read_output(run.id, stream=None, offset=0, limit=1 << 30)
        return b"".join(chunk.data for chunk in chunks)

    @property
    def orders(self) -> list[SeenQuery]:
        """Every query with an order that serf took."""
        return [query for query in self.cluster.queries if query.name == "shovey"]


def principal(node: str) -> Principal:
    """Who a node is."""
    return Principal(organization=ORGANIZATION, role=Role.NODE, name=node)


async def until(condition: Callable[[], bool]) -> None:
    """Waits, on virtual time."""
    while not condition():  # noqa: ASYNC110 - the condition is anything, and the time is virtual
        await trio.sleep(0.1)


async def reached(rig: SchobRig, job_id: str, node: str, state: RunState) -> Run:
    """The run once it is in this state."""
    await until(lambda: rig.live(job_id, node).state is state)
    return rig.live(job_id, node)


@asynccontextmanager
async def open_schob_rig(
    directory: Path,
    store: Store,
    nodes: Mapping[str, str],
    *,
    timing: Timing | None = None,
    presence: Presence = Presence.UP,
    before_jobs: Callable[[SchobRig], Awaitable[None]] | None = None,
    cluster: FakeSerfCluster | None = None,
) -> AsyncIterator[SchobRig]:
    """Opens a rig; everything ends with the block.

    Args:
        directory: for the key file.
        store: as an earlier rig left it, or empty.
        nodes: node name → serf name.
        timing: as the controller's.
        presence: what every node is at first, if it is not stored.
        before_jobs: called before unfinished jobs are taken up.
        cluster: of an earlier rig.
    """
    clock, timing = TrioClock(), timing or Timing()
    cluster = cluster or FakeSerfCluster(CONTROLLER, *nodes.values())
    agent = cluster.agent(CONTROLLER)
    registry = NodeRegistry(store)
    await registry.load()
    for name in nodes:
        if registry.get(ORGANIZATION, name) is None:
            node = Node(
                name=name,
                organization=ORGANIZATION,
                link=KIND,
                enrolled_at=clock.now(),
                presence=presence,
                presence_since=clock.now(),
            )
            await registry.put(node)
    link = SerfLink(
        replace(SerfSettings(events=RING_EVENTS), open_stream=agent.open_stream),
        clock=trio.current_time,
        jitter=lambda: 1.0,
    )
    keys = SchobKeyFile(directory / "keys.json")
    keys.save(SchobKeys(organization=ORGANIZATION, keys=(one_key(),)))
    keyring = SchobKeyring(lambda: {ORGANIZATION: keys}, registry=registry)
    await keyring.load()
    wing = ShoveyWing(
        link, organization=ORGANIZATION, limit=1024, keyring=keyring, registry=registry, clock=clock, timing=timing
    )
    key = Ed25519PrivateKey.generate()
    doorbell = SerfDoorbell(link=link, signing_key=lambda *_: key, epoch=1, clock=clock, limit=1024)
    links = Links()
    stream = StreamRoute(links=links, doorbell=doorbell, signer=make_signer(), timing=timing)
    opened = open_engine(
        store,
        registry=registry,
        links=links,
        routes=Routes(agents=stream, others={KIND: wing.route}),
        doorbell=doorbell,
        clock=clock,
        epoch=1,
        timing=timing,
        bounds=Bounds(),
    )
    async with opened as engine, trio.open_nursery() as helpers:
        helpers.start_soon(agent.run)
        await helpers.start(link.run)
        await link.wait_connected()
        rig = SchobRig(
            cluster=cluster,
            agent=agent,
            engine=engine,
            nodes=wing.start(engine, audit=store),
            jobs=make_jobs(engine, store),
        )
        if before_jobs is not None:
            await before_jobs(rig)
        await engine.take_up_jobs()
        with trio.fail_after(20_000):  # noqa: ASYNC100 - the test is in the yield
            yield rig
        helpers.cancel_scope.cancel(reason="the test is over")
