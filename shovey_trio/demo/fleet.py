"""A whole fleet on loopback: a controller, agents and, if wanted, serf agents – real processes, real TLS.

For the demo, the end-to-end tests and the benchmarks. Everything lives in one directory, which the caller removes.
"""

from __future__ import annotations

import json
import socket
from base64 import urlsafe_b64decode
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from shovey_trio.config.operator import load_client_settings
from shovey_trio.core.errors import Unreachable
from shovey_trio.core.trust.enrollment import JoinTicket
from shovey_trio.demo.processes import ManagedProcess, ProcessFailed, program, run_as
from shovey_trio.demo.serf_agents import SerfAgentProcess, open_serf_agents
from shovey_trio.identity.files import write_secret
from shovey_trio.identity.layout import ClientDirectory, DataDirectory
from shovey_trio.rpc.bridge import ClientTls
from shovey_trio.rpc.client.client import ShoveyClient, open_client
from shovey_trio.rpc.client.retry import RetryPolicy
from shovey_trio.v1 import node_pb2

ORGANIZATION = "default"
_POLL = 0.05
_given: set[int] = set()
# A daemon on a machine that does much else takes its time to start.
_PATIENCE = 60.0
_END_DEADLINE = 20.0
# What no log of a program that works may hold, whatever was done to it.
_NOISE = ("Traceback", "Exception ignored", "Task exception was never retrieved", "never awaited", "ResourceWarning")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSpec:
    """A node of the fleet. ``settings`` are ``section.key`` → value of the agent's configuration.

    ``environ`` is added to the environment of its agent. ``split`` makes it two parts, a launcher with this process's
    rights and a network part that runs as the account of that name.
    """

    name: str
    link: str = "attached"
    tags: Mapping[str, str] = field(default_factory=dict)
    whitelist: Mapping[str, object] | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)
    split: str = ""


@dataclass(slots=True, kw_only=True)
class FleetNode:
    """A node that was enrolled."""

    spec: NodeSpec
    state_dir: Path
    whitelist: Path
    agent: ManagedProcess
    serf: SerfAgentProcess | None
    launcher: ManagedProcess | None = None

    @property
    def spool_dir(self) -> Path:
        """Where ``runs`` is: the launcher's directory, if there is a launcher."""
        return self.state_dir if self.launcher is None else launcher_dir(self.state_dir)


def launcher_dir(state_dir: Path) -> Path:
    """The launcher's directory of a node that is two parts."""
    return state_dir.with_name(state_dir.name + "-launcher")


class Fleet:
    """A running fleet; made by ``open_fleet``.

    Attributes:
        directory: where all of it lives.
        data: the controller's data directory.
        listeners: ``control`` and ``enroll`` → their address.
        nodes: by name.
        serf: the controller's serf agent.
        controller: the daemon.
    """

    def __init__(
        self,
        directory: Path,
        *,
        settings: Mapping[str, str],
        serf: SerfAgentProcess | None,
        serf_key_file: Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self._serf_key_file = serf_key_file
        self.data = DataDirectory(directory / "controller")
        self.nodes: dict[str, FleetNode] = {}
        self.serf = serf
        self.listeners = {name: f"127.0.0.1:{free_port()}" for name in ("control", "enroll")}
        fixed = {
            "server.drain_timeout": "1s",
            "serf.enabled": "true" if serf else "false",
            "log.format": "console",
        }
        if serf is not None:
            fixed["serf.address"] = f"127.0.0.1:{serf.rpc_port}"
        if serf_key_file is not None:
            fixed["serf.auth_key_file"] = str(serf_key_file)
        self._settings = [word for key, value in {**fixed, **settings}.items() for word in ("--set", f"{key}={value}")]
        self.controller = ManagedProcess(
            [*program("shovey-trio"), "serve", "--data-dir", str(self.data.root), *self._settings],
            log=directory / "controller.log",
            environ=environ,
        )

    @property
    def client_directory(self) -> ClientDirectory:
        """Of the first admin; what SHOVEY_CONFIG may name."""
        return ClientDirectory(self.data.admin)

    def client_tls(self) -> tuple[str, ClientTls, str]:
        """Address, identity and server name of the admin's client."""
        settings = load_client_settings(self.client_directory.configuration, environ={})
        own = settings.read_certificate()
        tls = ClientTls(ca=own.ca, certificate=own.chain, private_key=own.private_key)
        return settings.client.server, tls, settings.client.server_name

    @asynccontextmanager
    async def open_client(self, *, patience: float = _PATIENCE) -> AsyncIterator[ShoveyClient]:
        """A client of the first admin, so many seconds patient with a controller that is away."""
        server, tls, server_name = self.client_tls()
        retry = RetryPolicy(call_patience=patience)
        async with open_client(server, tls, server_name=server_name, retry=retry) as client:
            yield client

    async def initialize(self) -> None:
        """Makes the controller's data directory."""
        listen = [word for name, address in self.listeners.items() for word in (f"--{name}-listen", address)]
        await run_program("shovey-trio", "init", "--data-dir", str(self.data.root), *listen)

    async def wait_ready(self) -> None:
        """Waits until the controller answers.

        Raises:
            ProcessFailed: it has ended instead.
        """
        async with self.open_client(patience=1.0) as client:
            while True:
                self.controller.check()
                try:
                    await client.get_server_info()
                except Unreachable:
                    continue  # after some patience of the client's own
                return

    async def join_ticket(self, name: str) -> JoinTicket:
        """A one-time token for a node name, with all else that enrolment needs."""
        async with self.open_client() as client:
            made = await client.create_enrollment_token(name)
        authority = x509.load_pem_x509_certificate(made.ca_certificates)
        return JoinTicket(
            organization=ORGANIZATION,
            node=name,
            enroll_address=made.enroll_address,
            ca_certificate=authority.public_bytes(Encoding.DER),
            secret=urlsafe_b64decode(made.token + "="),
            root_public_key=made.root_public_key,
        )

    async def enroll(self, name: str, state_dir: Path, *, again: bool = False, split: str = "") -> None:
        """Enrols a node in this process, as ``shovey-agent enroll`` does in its own."""
        from shovey_agent.credentials import CredentialStore
        from shovey_agent.net.enroll import call_enroll, enroll, prepare_split

        ticket = await self.join_ticket(name)
        parts = prepare_split(state_dir, launcher_dir(state_dir), user=split) if split else None
        await enroll(ticket, CredentialStore(state_dir), call_enroll, again=again, split=parts)

    async def add_node(self, spec: NodeSpec, *, serf: SerfAgentProcess | None) -> FleetNode:
        """Enrols a node; its agent is not started yet."""
        state_dir = self.directory / spec.name
        whitelist = self.directory / f"{spec.name}-whitelist.json"
        write_whitelist(whitelist, spec.whitelist or {})
        await self.enroll(spec.name, state_dir, split=spec.split)
        configuration = self.directory / f"{spec.name}.toml"
        configuration.write_text(self._agent_configuration(spec, state_dir, whitelist, serf), "utf-8")
        agent = ManagedProcess(
            [
                *(run_as(spec.split) if spec.split else ()),
                *program("shovey-agent"),
                "run",
                "--config",
                str(configuration),
            ],
            log=self.directory / f"{spec.name}.log",
            environ=spec.environ,
        )
        launcher = None
        if spec.split:
            (self.directory / f"{spec.name}-run").mkdir(mode=0o755)
            launcher = ManagedProcess(
                [*program("shovey-agent"), "launcher", "--config", str(configuration)],
                log=self.directory / f"{spec.name}-launcher.log",
                environ=spec.environ,
            )
        node = FleetNode(spec=spec, state_dir=state_dir, whitelist=whitelist, agent=agent, serf=serf, launcher=launcher)
        self.nodes[spec.name] = node
        return node

    async def wait_up(self, names: Sequence[str] | None = None) -> None:
        """Waits until these nodes (or all) are up.

        Raises:
            ProcessFailed: the controller or an agent has ended instead.
        """
        wanted = set(self.nodes if names is None else names)
        await self.wait_ready()
        async with self.open_client() as client:
            while True:
                self.controller.check()
                for node in self.nodes.values():
                    node.agent.check()
                up = {
                    node.name async for node in client.list_nodes() if node.status.presence == node_pb2.NODE_PRESENCE_UP
                }
                if wanted <= up:
                    return
                await trio.sleep(_POLL)

    def noise(self) -> list[str]:
        """What the logs of controller and agents say that was not thought of: each find with the lines after it."""
        found = []
        launchers = [node.launcher for node in self.nodes.values() if node.launcher is not None]
        for process in (self.controller, *launchers, *(node.agent for node in self.nodes.values())):
            lines = process.log.read_text("utf-8", "replace").splitlines() if process.log.exists() else []
            first = next((number for number, line in enumerate(lines) if any(word in line for word in _NOISE)), None)
            if first is not None:
                found.append("\n".join([process.log.name, *lines[max(0, first - 5) : first + 60]]))
        return found

    async def end(self) -> None:
        """Ends everything that was started, commands that still run included. Shielded, with a deadline."""
        with trio.CancelScope(deadline=trio.current_time() + _END_DEADLINE, shield=True):
            async with trio.open_nursery() as nursery:
                for node in self.nodes.values():
                    nursery.start_soon(self._end_node, node)
                nursery.start_soon(self.controller.stop)

    @staticmethod
    async def _end_node(node: FleetNode) -> None:
        from shovey_agent.run.bury import abandon_run
        from shovey_agent.run.spool import Spool, SpoolLimits

        await node.agent.stop()
        if node.launcher is not None:
            await node.launcher.stop()
        if not (node.spool_dir / "runs").exists():
            return
        spool = Spool(node.spool_dir, SpoolLimits())
        for run_id in list(spool.run_ids()):
            await trio.to_thread.run_sync(partial(abandon_run, spool, run_id))

    def _agent_configuration(
        self, spec: NodeSpec, state_dir: Path, whitelist: Path, serf: SerfAgentProcess | None
    ) -> str:
        sections: dict[str, dict[str, object]] = {
            "agent": {"state_dir": str(state_dir), "whitelist": str(whitelist), "link": spec.link},
            "serf": {"enabled": serf is not None},
            "log": {"format": "console"},
        }
        if spec.split:
            socket_ = self.directory / f"{spec.name}-run" / "launcher.sock"
            sections["launcher"] = {"socket": str(socket_), "user": spec.split}
            sections["launcher"]["state_dir"] = str(launcher_dir(state_dir))
        if serf is not None:
            sections["serf"]["address"] = f"127.0.0.1:{serf.rpc_port}"
        if self._serf_key_file is not None:
            sections["serf"]["auth_key_file"] = str(self._serf_key_file)
        for key, value in spec.settings.items():
            section, _, name = key.partition(".")
            sections.setdefault(section, {})[name] = value
        text = "".join(
            f"[{section}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
            for section, values in sections.items()
        )
        tags = "".join(f"{json.dumps(key)} = {json.dumps(value)}\n" for key, value in spec.tags.items())
        return text + "[agent.tags]\n" + tags


@asynccontextmanager
async def open_fleet(
    directory: Path,
    nodes: Sequence[NodeSpec],
    *,
    serf: bool,
    settings: Mapping[str, str] | None = None,
    encrypt_key: bytes | None = None,
    auth_key: str | None = None,
    controller_name: str = "controller",
    environ: Mapping[str, str] | None = None,
    before_agents: Callable[[Fleet], None] = lambda _: None,
) -> AsyncIterator[Fleet]:
    """A fleet of these nodes, all up. At the end every process is ended, also when cancelled.

    Args:
        directory: for everything; the caller removes it.
        nodes: what to enrol and start.
        serf: whether each of them, and the controller, gets a real serf agent.
        settings: ``section.key`` → value of the controller's configuration.
        encrypt_key: encrypts the gossip ring.
        auth_key: the RPC key of every serf agent.
        controller_name: what the controller's serf agent is called, after the organization.
        environ: added to the environment of the controller.
        before_agents: called once the controller's addresses are known and before any agent starts.

    Raises:
        ProcessFailed: a program did not start; the message shows its log.
        SerfAgentFailed: serf was asked for and is not installed, or does not start.
    """
    async with AsyncExitStack() as stack:
        agents: Sequence[SerfAgentProcess | None] = [None] * (len(nodes) + 1)
        if serf:
            names = [f"{ORGANIZATION}:{controller_name}", *(f"{ORGANIZATION}:{node.name}" for node in nodes)]
            agents = await stack.enter_async_context(
                open_serf_agents(names, directory=directory, encrypt_key=encrypt_key, auth_key=auth_key)
            )
        serf_key_file = None
        if auth_key is not None:
            serf_key_file = directory / "serf.key"
            write_secret(serf_key_file, auth_key.encode())
        fleet = Fleet(directory, settings=settings or {}, serf=agents[0], serf_key_file=serf_key_file, environ=environ)
        try:
            await fleet.initialize()
            before_agents(fleet)
            await fleet.controller.start()
            await fleet.wait_ready()
            async with trio.open_nursery() as nursery:
                for spec, agent in zip(nodes, agents[1:], strict=True):
                    nursery.start_soon(partial(_add_and_start, fleet, spec, agent))
            await fleet.wait_up()
            yield fleet
        finally:
            await fleet.end()  # noqa: ASYNC102 - shielded, with a deadline, in there


async def _add_and_start(fleet: Fleet, spec: NodeSpec, serf: SerfAgentProcess | None) -> None:
    node = await fleet.add_node(spec, serf=serf)
    if node.launcher is not None:
        await node.launcher.start()
    await node.agent.start()


def write_whitelist(path: Path, commands: Mapping[str, object]) -> None:
    """Writes a node's whitelist, replacing it at once."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps({"whitelist": dict(commands)}), "utf-8")
    fresh.replace(path)


async def run_program(name: str, *arguments: str) -> str:
    """Runs one of the three programs to its end and returns what it printed.

    Raises:
        ProcessFailed: it failed.
    """
    done = await trio.run_process(
        [*program(name), *arguments], capture_stdout=True, capture_stderr=True, check=False, stdin=b""
    )
    if done.returncode:
        raise ProcessFailed(f"{name} {arguments[0]}: {done.stderr.decode('utf-8', 'replace').strip()}")
    return done.stdout.decode("utf-8")


def free_port() -> int:
    """A TCP port on loopback that was free a moment ago, and that nobody in this process was given before."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port not in _given:
            # The kernel may name one twice until somebody listens on it: two listeners of one fleet, for instance.
            _given.add(port)
            return port
