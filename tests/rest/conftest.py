"""The REST shim on a real socket, in front of a controller's insides with fake agents; real time, memory store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from lab.chef_client import ChefClient, make_key, public_pem
from lab.failpoint_store import FailpointStore
from lab.fake_agents import FakeAgent, Script
from lab.fake_doorbell import FakeDoorbell
from lab.nursery_rig import NurseryRig, open_rig
from shovey_trio.application.attempts import FailedAttempts
from shovey_trio.application.audit import AuditLog
from shovey_trio.application.nodes import Nodes
from shovey_trio.chef.callers import StoredChefCallers
from shovey_trio.config.server import ServerSettings
from shovey_trio.core.chef.principals import ChefPrincipal, ChefPrincipalKind
from shovey_trio.core.jobs.model import OutputChunk, Principal, Role, Run, StreamName
from shovey_trio.core.jobs.states import RunState
from shovey_trio.http.server import HttpServer
from shovey_trio.nursery.clock import SteadyClock
from shovey_trio.nursery.settings import Bounds
from shovey_trio.shovey.rest.listener import open_rest

HARD_LIMIT = 30.0
WEB = ("web-1", "web-2")
# Registered and never seen.
NEVER_UP = "never-1"
USERS = {"admin": Role.ADMIN, "ops": Role.OPERATOR, "viewer": Role.VIEWER}


@cache
def key_of(name: str) -> RSAPrivateKey:
    """One key per name for the whole session: making one takes a tenth of a second."""
    return make_key()


@dataclass
class RecordingReports:
    """``SchobReports`` that only keeps what it is told."""

    runs: list[tuple[Principal, str, str, Mapping[str, object]]] = field(default_factory=list)
    streams: list[tuple[Principal, str, str, Mapping[str, object]]] = field(default_factory=list)
    organizations: dict[tuple[str, str], str] = field(default_factory=dict)
    error: Exception | None = None
    resets: set[str] = field(default_factory=set)
    key: str = "-----BEGIN PUBLIC KEY-----\none\n-----END PUBLIC KEY-----\n"

    async def run_put(self, principal: Principal, job_id: str, node: str, body: Mapping[str, object]) -> None:
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        self.runs.append((principal, job_id, node, body))

    async def stream_put(self, principal: Principal, job_id: str, node: str, body: Mapping[str, object]) -> None:
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        self.streams.append((principal, job_id, node, body))

    async def organization_of(self, job_id: str, node: str) -> str:
        await trio.lowlevel.checkpoint()
        return self.organizations.get((job_id, node), "")

    def public_key(self, organization: str) -> str:
        return self.key

    async def reset_key(self, organization: str, request_id: str) -> str:
        await trio.lowlevel.checkpoint()
        self.resets.add(request_id)
        self.key = self.key.replace("one", "two")
        return self.key


@dataclass(kw_only=True)
class Shim:
    """The shim with everything behind it."""

    rig: NurseryRig
    store: FailpointStore
    agents: Mapping[str, FakeAgent]
    legacy: RecordingReports
    server: HttpServer
    audit: AuditLog

    def client(self, user: str, **changes: Any) -> ChefClient:
        return replace(ChefClient(port=self.server.port, user=user, key=key_of(user)), **changes)

    @property
    def admin(self) -> ChefClient:
        return self.client("admin")

    def script(self, **fields: Any) -> None:
        """What every agent does from now on."""
        for agent in self.agents.values():
            agent.script = Script(**fields)

    async def start(self, *nodes: str, **members: Any) -> str:
        """Starts a job as knife does; its id."""
        answer = await self.admin.post("/shovey/jobs", {"command": "work", "nodes": list(nodes or WEB), **members})
        assert answer.status == 200, answer.body
        return str(answer.json["uri"][-36:])

    async def until(self, job_id: str, node: str, state: RunState) -> Run:
        """The run, once it is durably in this state."""

        async def look() -> Run | None:
            run = await self.rig.run(job_id, node)
            return run if run.state is state else None

        return await self.rig.jobs.until(job_id, look)

    async def settled(self, *nodes: str, **members: Any) -> str:
        """A job that has ended."""
        job_id = await self.start(*nodes, **members)
        await self.rig.ended(job_id)
        return job_id

    async def output(self, job_id: str, node: str, stream: StreamName = StreamName.STDOUT) -> Sequence[OutputChunk]:
        run = await self.rig.run(job_id, node)
        return await self.store.read_output(run.id, stream=stream, offset=0, limit=2**20)


@asynccontextmanager
async def open_shim(
    *,
    up: Sequence[str] = WEB,
    never_up: str = NEVER_UP,
    users: Mapping[str, Role] = USERS,
    chef: Mapping[str, object] | None = None,
    limit: float = HARD_LIMIT,
    failed_auth_per_minute: int = 30,
    bounds: Bounds | None = None,
    **settings: Any,
) -> AsyncIterator[Shim]:
    """A shim with agents that are up and one node that never was."""
    clock, store, legacy = SteadyClock(), FailpointStore(), RecordingReports()
    principals = [make_principal(ChefPrincipalKind.USER, name, role) for name, role in users.items()]
    principals += [make_principal(ChefPrincipalKind.NODE, name, Role.NODE) for name in (*up, never_up)]
    await store.write_chef_principals(principals)
    configured = ServerSettings.model_validate(
        {"rest": {"enabled": True, "listen": "127.0.0.1:0", "stream_hold": 0.2, **settings}, "chef": chef or {}}
    )
    agents = {name: FakeAgent(name, clock=clock) for name in up}
    with trio.fail_after(limit):
        async with trio.open_nursery() as nursery, open_rig(store, clock=clock, bounds=bounds) as rig:
            for agent in agents.values():
                nursery.start_soon(agent.serve)  # noqa: ASYNC113 - an agent may come late
            await rig.register([never_up], up=False)
            await rig.register(up)
            for agent in agents.values():
                agent.connect(rig.inbox)
            nodes = Nodes(
                store=store,
                services=rig.services,
                supervisor=rig.supervisor,
                registry=rig.registry,
                doorbell=FakeDoorbell(),
            )
            callers = StoredChefCallers(store=store, clock=clock)
            audit = AuditLog(store=store, clock=clock, organization="default")
            attempts = FailedAttempts(per_minute=failed_auth_per_minute, audit=audit, clock=clock)
            async with open_rest(
                configured,
                jobs=rig.jobs,
                nodes=nodes,
                callers=callers,
                reports=legacy,
                clock=clock,
                audit=audit,
                attempts=attempts,
            ) as server:
                assert server is not None
                yield Shim(rig=rig, store=store, agents=agents, legacy=legacy, server=server, audit=audit)
            nursery.cancel_scope.cancel(reason="the test is over")


@pytest.fixture
async def shim() -> AsyncIterator[Shim]:
    async with open_shim() as opened:
        yield opened


def make_principal(kind: ChefPrincipalKind, name: str, role: Role, *, organization: str = "default") -> ChefPrincipal:
    """Somebody with the key of their name."""
    return ChefPrincipal(
        organization=organization,
        kind=kind,
        name=name,
        role=role,
        public_key=public_pem(key_of(name)),
        created_at=0.0,
    )
