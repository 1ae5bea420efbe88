"""Real serf agents on loopback, for tests and the demo: started, joined, converged, and ended each by its own pid."""

from __future__ import annotations

import base64
import json
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from shovey_trio.core.errors import ShoveyError
from shovey_trio.core.serf.wire import MemberStatus
from shovey_trio.serf.connection import SerfConnection, open_connection

_HOST = "127.0.0.1"
_POLL = 0.02
#: Starts tried on other ports, should somebody take a port between our look and serf's bind.
_ATTEMPTS = 3
_END_DEADLINE = 5.0


class SerfAgentFailed(Exception):
    """The serf program is missing, does not start, or died; the message ends with its last log lines."""


class SerfAgentProcess:
    """One agent; its files are a configuration and a log in the directory it is given.

    Attributes:
        name: serf name.
        rpc_port: where it answers RPC on 127.0.0.1; stays the same over restarts.
        gossip_port: where others join it.
        auth_key: its ``rpc_auth``, or None.
    """

    def __init__(
        self,
        name: str,
        *,
        directory: Path,
        number: int,
        program: str = "serf",
        auth_key: str | None = None,
        encrypt_key: bytes | None = None,
        tags: Mapping[str, str] | None = None,
        profile: str = "lan",
    ) -> None:
        self.name = name
        self.auth_key = auth_key
        self.rpc_port = 0
        self.gossip_port = 0
        self._program = program
        self._config = directory / f"serf-{number}.json"
        self._log = directory / f"serf-{number}.log"
        self._encrypt_key = encrypt_key
        self._tags = dict(tags or {})
        self._profile = profile
        self._process: trio.Process | None = None

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def start(self, *, join: Sequence[int] = ()) -> None:
        """Starts it and returns when it answers RPC.

        Args:
            join: gossip ports to join; tried again for as long as it runs.

        Raises:
            SerfAgentFailed: it ended instead.
        """
        for attempt in range(_ATTEMPTS):
            if not self.gossip_port or attempt:
                self.gossip_port, self.rpc_port = _free_ports()
            self._write_config(join)
            with self._log.open("ab") as log:
                self._process = await trio.lowlevel.open_process(
                    [self._program, "agent", "-config-file", str(self._config)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            if await self._answers():
                return
        raise SerfAgentFailed(f"serf agent {self.name} does not start:\n{self._tail()}")

    async def kill(self) -> None:
        """SIGKILL, as a crash: others see it fail after a while."""
        await self._end(signal.SIGKILL)

    async def leave(self) -> None:
        """SIGINT: it tells the others and ends."""
        await self._end(signal.SIGINT)

    def stall(self) -> None:
        """SIGSTOP: its sockets stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    async def open_stream(self) -> trio.SocketStream:
        """A TCP connection to its RPC port.

        Raises:
            OSError: it is not there.
        """
        return await trio.open_tcp_stream(_HOST, self.rpc_port)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[SerfConnection]:
        """An RPC connection, authenticated."""
        async with open_connection(await self.open_stream(), auth_key=self.auth_key) as connection:
            yield connection

    async def wait_alive(self, names: Sequence[str]) -> None:
        """Returns when this agent sees exactly these members alive."""
        async with self.connect() as connection:
            while True:
                alive = {m.name for m in await connection.members() if m.status is MemberStatus.ALIVE}
                if alive == set(names):
                    return
                await trio.sleep(_POLL)

    async def _answers(self) -> bool:
        assert self._process is not None
        while self._process.returncode is None:
            try:
                async with self.connect():
                    return True
            except (OSError, ShoveyError):
                self._process.poll()
                await trio.sleep(_POLL)
        return False

    async def _end(self, number: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        with trio.CancelScope(deadline=trio.current_time() + _END_DEADLINE, shield=True):
            self._signal(number)
            await process.wait()
        if process.returncode is None:
            process.kill()
            with trio.CancelScope(deadline=trio.current_time() + _END_DEADLINE, shield=True):
                await process.wait()
        self._process = None

    def _signal(self, number: signal.Signals) -> None:
        # trio polls first, so a pid that was reaped is never signalled.
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def _write_config(self, join: Sequence[int]) -> None:
        config: dict[str, object] = {
            "node_name": self.name,
            "bind": f"{_HOST}:{self.gossip_port}",
            "rpc_addr": f"{_HOST}:{self.rpc_port}",
            "profile": self._profile,
            "tags": self._tags,
            "retry_join": [f"{_HOST}:{port}" for port in join],
            "retry_interval": "1s",
        }
        if self.auth_key is not None:
            config["rpc_auth"] = self.auth_key
        if self._encrypt_key is not None:
            config["encrypt_key"] = base64.b64encode(self._encrypt_key).decode("ascii")
        # The file holds keys, and keys do not belong on a command line that everybody can list.
        self._config.touch(mode=0o600)
        self._config.write_text(json.dumps(config), encoding="utf-8")

    def _tail(self) -> str:
        return "\n".join(self._log.read_text("utf-8", "replace").splitlines()[-10:])


def find_serf() -> str | None:
    """The serf program, or None where it is not installed."""
    return shutil.which("serf")


@asynccontextmanager
async def open_serf_agents(
    names: Sequence[str],
    *,
    directory: Path,
    auth_key: str | None = None,
    encrypt_key: bytes | None = None,
    tags: Mapping[str, Mapping[str, str]] | None = None,
    profile: str = "lan",
) -> AsyncIterator[tuple[SerfAgentProcess, ...]]:
    """Agents of these names that all see each other. All are ended at the end, also when cancelled.

    Args:
        names: serf names, ``organization:node``.
        directory: for configurations and logs; the caller removes it.
        auth_key: RPC key of all of them.
        encrypt_key: 16, 24 or 32 bytes for the gossip ring.
        tags: tags by name.
        profile: serf's timing. ``lan`` is its default; ``local`` finds failures sooner, but each agent passes a query
            on only twice, so that in a cluster of four already one query in about ten misses somebody.

    Raises:
        SerfAgentFailed: serf is not installed or does not start.
    """
    program = find_serf()
    if program is None:
        raise SerfAgentFailed("the serf program is not installed")
    agents = tuple(
        SerfAgentProcess(
            name,
            directory=directory,
            number=number,
            program=program,
            auth_key=auth_key,
            encrypt_key=encrypt_key,
            tags=(tags or {}).get(name),
            profile=profile,
        )
        for number, name in enumerate(names)
    )
    try:
        for agent in agents:
            # Everybody joins the first: convergence is a matter of one push and pull.
            await agent.start(join=[agents[0].gossip_port] if agent is not agents[0] else [])
        for agent in agents:
            await agent.wait_alive(names)
        yield agents
    finally:
        with trio.CancelScope(deadline=trio.current_time() + len(agents) * _END_DEADLINE, shield=True):
            for agent in agents:
                await agent.kill()


def _free_ports() -> tuple[int, int]:
    # Gossip needs the same port for TCP and UDP. All are held until the last is found, so that they differ.
    with socket.socket() as gossip, socket.socket(type=socket.SOCK_DGRAM) as datagrams, socket.socket() as rpc:
        gossip.bind((_HOST, 0))
        datagrams.bind(gossip.getsockname())
        rpc.bind((_HOST, 0))
        return gossip.getsockname()[1], rpc.getsockname()[1]
