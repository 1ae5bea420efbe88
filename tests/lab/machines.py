"""Two machines out of one, so that what a page tells to type is run as it stands there: nothing is added to a line.

Each has a network of its own, its own /etc, /opt, /run and /var/lib, and knows the other by name;
the rest is of this one.
They are Linux namespaces, held by a process that sleeps, which takes root.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
import trio

from shovey_trio.demo.processes import ManagedProcess

_NETWORK: Final = "10.77.0"
_POLL: Final = 0.1
_SET_UP: Final = """\
set -e
ip link set lo up
mount -t tmpfs tmpfs /mnt
cp -a /etc /mnt/etc
cat >> /mnt/etc/hosts
mount --bind /mnt/etc /etc
mount -t tmpfs tmpfs /opt
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib
touch {ready}
exec sleep infinity
"""


class Machine:
    """One of them; made by ``open_machines``.

    Attributes:
        place: where its commands are run; both machines have it.
        programs: found before all others.
    """

    def __init__(self, name: str, address: str, directory: Path) -> None:
        self.name = name
        self.address = address
        self.place = directory
        self.programs = directory / "bin"
        self._directory = directory
        self._exports: list[str] = []
        self._holder: ManagedProcess | None = None

    @property
    def pid(self) -> int:
        assert self._holder is not None
        assert self._holder.pid is not None
        return self._holder.pid

    async def start(self, hosts: str) -> None:
        """Makes it."""
        ready, names = self._directory / f"{self.name}.up", self._directory / "hosts"
        names.write_text(hosts)
        script = f"exec < {shlex.quote(str(names))}\n" + _SET_UP.format(ready=shlex.quote(str(ready)))
        command = ["unshare", "--mount", "--net", "sh", "-c", script]
        self._holder = ManagedProcess(command, log=self._directory / f"{self.name}.log")
        await self._holder.start()
        while not ready.exists():
            self._holder.check()
            await trio.sleep(_POLL)

    async def stop(self) -> None:
        """Ends it."""
        if self._holder is not None:
            await self._holder.kill()

    def background(self, line: str, environ: Mapping[str, str] | None = None) -> ManagedProcess:
        """A line that goes on running, to be started."""
        log = self._directory / f"{self.name}-{Path(line.split(maxsplit=1)[0]).name}.log"
        return ManagedProcess(self._command(f"exec {line}"), log=log, environ=self._environ(environ))

    async def run(self, line: str, environ: Mapping[str, str] | None = None) -> str:
        """Runs a line to its end; what it prints. One that exports something holds for all that come after it."""
        if line.startswith("export "):
            self._exports.append(line.partition(" #")[0])
        done = await trio.run_process(
            self._command(line),
            env={**os.environ, **self._environ(environ)},
            stdin=b"",
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
        assert done.returncode == 0, f"{line}: {done.stderr.decode()}"
        return done.stdout.decode()

    def _command(self, line: str) -> list[str]:
        script = "; ".join(["set -e", f"cd {shlex.quote(str(self.place))}", *self._exports, line])
        return ["nsenter", f"--target={self.pid}", "--mount", "--net", "bash", "-c", script]

    def _environ(self, environ: Mapping[str, str] | None) -> dict[str, str]:
        path = f"{self.programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {"HOME": str(self._directory), "PATH": path, **(environ or {})}


@asynccontextmanager
async def open_machines(directory: Path, first: str, second: str) -> AsyncIterator[tuple[Machine, Machine]]:
    """Two machines of these names, for the block; skips the test where nobody may make them."""
    if os.geteuid() != 0:
        pytest.skip("only root makes machines out of namespaces")
    machines = Machine(first, f"{_NETWORK}.1", directory), Machine(second, f"{_NETWORK}.2", directory)
    hosts = "".join(f"{machine.address} {machine.name}\n" for machine in machines)
    try:
        for machine in machines:
            await machine.start(hosts)
        one, other = machines
        cable = ["ip", "link", "add", "lan", "netns", str(one.pid), "type", "veth"]
        await trio.run_process([*cable, "peer", "name", "lan", "netns", str(other.pid)])
        for machine in machines:
            await machine.run(f"ip address add {machine.address}/24 dev lan && ip link set lan up")
        yield machines
    finally:
        with trio.CancelScope(deadline=trio.current_time() + 10, shield=True):
            for machine in machines:
                await machine.stop()


@asynccontextmanager
async def open_serf_ring(first: Machine, second: Machine) -> AsyncIterator[None]:
    """A serf agent on each, at its default addresses, by the machine's name."""
    agents = [
        machine.background(f"serf agent -node={machine.name} -bind={machine.address}:7946 {join}")
        for machine, join in ((first, ""), (second, f"-retry-join={first.address}:7946 -retry-interval=1s"))
    ]
    try:
        for agent in agents:
            await agent.start()
        while True:
            for agent in agents:
                agent.check()
            known = [await machine.run("serf members || true") for machine in (first, second)]
            if all(members.count("alive") == len(agents) for members in known):
                break
            await trio.sleep(_POLL)
        yield
    finally:
        with trio.CancelScope(deadline=trio.current_time() + 10, shield=True):
            for agent in agents:
                await agent.kill()
