"""The servers that old nodes can be measured against: this one, and goiardi from Debian's package; in the same shape.

Both verify Chef signatures, both have the same nodes, and both have an emulated serf agent beside them. goiardi keeps
everything in memory; this one syncs what it acknowledges to disk.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Final

import trio
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from lab.chef_client import ChefClient, make_key, public_pem
from lab.goiardi import find_goiardi, open_goiardi
from lab.gossip import STEP
from lab.schobs.nodes import OldNode
from lab.serf_emulator import EmulatedSerf, open_emulated_serf
from shovey_trio.bench.daemon_meter import DaemonMeter
from shovey_trio.bench.stage import END_DEADLINE, WrongResult, make_fleet, start_daemon
from shovey_trio.core.chef.signing import SigningVersion, load_private_key, load_public_key
from shovey_trio.demo.fleet import ORGANIZATION, free_port, run_program
from shovey_trio.shovey.keys import SCHOB_KEYS
from shovey_trio.shovey.protocol.wire import ORDER_QUERY, STATUS_QUERY, status_payload

_POLL: Final = 0.1
# Heartbeats that come at once: an agent drops what its client has not read beyond 512.
_HEARTBEATS: Final = 100
_UP_DEADLINE: Final = 60.0
# Beside those of the nodes.
_CONNECTIONS: Final = 100
_REGISTRATIONS: Final = 8
_NO_ATTRIBUTES: Final[Mapping[str, object]] = {
    "automatic": {},
    "normal": {},
    "default": {},
    "override": {},
    "run_list": [],
}
#: Larger than any query that a server sends: what serf would refuse is let pass.
NO_LIMIT: Final = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class OldServer:
    """A server with its nodes registered and up.

    Attributes:
        admin: who starts jobs.
        signing_key: that its orders are signed with.
    """

    name: str
    port: int
    admin: ChefClient
    signing_key: RSAPublicKey
    meter: DaemonMeter
    serf: EmulatedSerf
    _timeouts: Iterator[int] = field(default_factory=partial(count, 300))

    async def ask(self, method: str, path: str, body: object = None) -> Any:
        """A request of the admin; returns the answer's JSON.

        Raises:
            WrongResult: it was answered with an error.
        """
        answer = await self.admin.request(method, path, body)
        if answer.status >= 400:
            raise WrongResult(f"{self.name}: {method} {path}: {answer.status} {answer.body[:300]!r}")
        return answer.json

    async def start(self, command: str, nodes: Sequence[OldNode]) -> str:
        """Starts a job on all of these nodes, which must be up, and returns its id."""
        names = [node.name for node in nodes]
        # A job of its own every time: the same request within a second is a repetition, and means the same job.
        body = {"command": command, "nodes": names, "run_timeout": next(self._timeouts), "quorum": "100%"}
        job_id: str = (await self.ask("POST", "/shovey/jobs", body))["id"]
        return job_id

    async def wait_up(self, nodes: Sequence[OldNode]) -> None:
        """Has all nodes send heartbeats until the server counts them as up.

        Raises:
            WrongResult: it does not within a minute.
        """
        missing = {node.name for node in nodes}
        with trio.move_on_after(_UP_DEADLINE):
            while missing:
                await self._beat(sorted(missing))
                await trio.sleep(_POLL)
                statuses = await self.ask("GET", "/status/all/nodes")
                missing -= {status["node_name"] for status in statuses if status["status"] == "up"}
            return
        raise WrongResult(f"{self.name} does not count {len(missing)} of {len(nodes)} nodes as up")

    async def _beat(self, nodes: Sequence[str]) -> None:
        """Every one of these nodes says that it is up, as a schob does every 30 s."""
        for number, node in enumerate(nodes, start=1):
            self.serf.send_query(STATUS_QUERY, status_payload(node))
            if number % _HEARTBEATS == 0:
                await trio.sleep(STEP)
        await trio.sleep(STEP)


def is_installed() -> bool:
    """Whether goiardi is, the peer."""
    return find_goiardi() is not None


@asynccontextmanager
async def open_own_server(directory: Path, nodes: Sequence[OldNode]) -> AsyncIterator[OldServer]:
    """This version's daemon with default settings but for the number of connections, its nodes as if from goiardi.

    Raises:
        ProcessFailed: it did not start.
    """
    await trio.Path(directory).mkdir()
    async with open_emulated_serf(
        f"{ORGANIZATION}:controller", [node.name for node in nodes], gossiped=ORDER_QUERY
    ) as serf:
        port = free_port()
        fleet = make_fleet(
            directory,
            **{
                "rest.enabled": "true",
                "rest.listen": f"127.0.0.1:{port}",
                # All nodes have one address here, and a connection each.
                "rest.max_connections": str(len(nodes) + _CONNECTIONS),
                "rest.max_connections_per_peer": str(len(nodes) + _CONNECTIONS),
                "legacy.enabled": "true",
                "serf.enabled": "true",
                "serf.address": f"127.0.0.1:{serf.rpc_port}",
            },
        )
        try:
            await fleet.initialize()
            key = make_key()
            export = directory / "export.json"
            export.write_text(json.dumps(_export(nodes, public_pem(key))), encoding="utf-8")
            await run_program("shovey-trio", "import", "goiardi", str(export), "--data-dir", str(fleet.data.root))
            await start_daemon(fleet)
            assert fleet.controller.pid is not None
            keys = SCHOB_KEYS.file_of(fleet.data, ORGANIZATION).load(ORGANIZATION)
            server = OldServer(
                name="shovey-trio",
                port=port,
                admin=ChefClient(port=port, user="admin", key=key, version=SigningVersion.V1_1),
                signing_key=load_public_key(keys.current.public_pem),
                meter=DaemonMeter(fleet.controller.pid, fleet.controller.log),
                serf=serf,
            )
            await server.wait_up(nodes)
            yield server
            fleet.controller.check()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + END_DEADLINE):
                await fleet.end()


@asynccontextmanager
async def open_goiardi_server(directory: Path, nodes: Sequence[OldNode]) -> AsyncIterator[OldServer]:
    """A goiardi that logs errors alone, with its in-memory store.

    Raises:
        GoiardiFailed: it is not installed, or did not take a node.
    """
    await trio.Path(directory).mkdir()
    async with (
        open_emulated_serf("goiardi-srv", [node.name for node in nodes], gossiped=ORDER_QUERY) as serf,
        open_goiardi(directory, serf=serf, log_level="error") as goiardi,
    ):
        assert goiardi.process.pid is not None
        port = int(goiardi.url.rpartition(":")[2])
        key = load_private_key((directory / "admin.pem").read_text(encoding="ascii"))
        server = OldServer(
            name="goiardi",
            port=port,
            admin=ChefClient(port=port, user="admin", key=key, version=SigningVersion.V1_1),
            signing_key=load_public_key(goiardi.signing_key.read_text(encoding="ascii")),
            meter=DaemonMeter(goiardi.process.pid, goiardi.process.log),
            serf=serf,
        )
        await _register(server, nodes)
        await server.wait_up(nodes)
        yield server
        goiardi.process.check()


async def _register(server: OldServer, nodes: Sequence[OldNode]) -> None:
    limiter = trio.CapacityLimiter(_REGISTRATIONS)

    async def register(node: OldNode) -> None:
        async with limiter:
            await server.ask("POST", "/clients", {"name": node.name, "admin": False, "public_key": node.public_pem})
            about = {"name": node.name, "json_class": "Chef::Node", "chef_type": "node", "chef_environment": "_default"}
            await server.ask("POST", "/nodes", {**about, **_NO_ATTRIBUTES})

    async with trio.open_nursery() as nursery:
        for node in nodes:
            nursery.start_soon(register, node)


def _export(nodes: Sequence[OldNode], admin_key: str) -> dict[str, Any]:
    """As ``goiardi -x`` would have written it."""
    clients = [{"name": node.name, "public_key": node.public_pem, "admin": False} for node in nodes]
    data = {
        "client": clients,
        "user": [{"name": "admin", "public_key": admin_key, "admin": True}],
        "node": [{"name": node.name} for node in nodes],
    }
    return {"MajorVersion": 1, "MinorVersion": 1, "Data": data}
