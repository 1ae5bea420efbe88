"""Fleets whose controller and agents are of two versions: 4a4340d, from this repository's history, and today's."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from shovey_trio.core.trust.enrollment import encode_join
from shovey_trio.demo.commands import commands
from shovey_trio.demo.fleet import Fleet, FleetNode, NodeSpec
from shovey_trio.demo.processes import ManagedProcess, program
from shovey_trio.demo.serf_agents import SerfAgentProcess

COMMIT: Final = "4a4340d"
NODES: Final = ("a", "b")
_ROOT: Final = Path(__file__).parents[2]
_MODULES: Final = {"shovey-trio": "shovey_trio.cli.daemon", "shovey-agent": "shovey_agent.cli"}
# Is in that version alone, and shows where its modules come from.
_PROOF: Final = "import shovey_trio.testing, shovey_agent.session; print(shovey_agent.session.__file__)"


@dataclass(frozen=True, slots=True)
class Version:
    """Where a version's programs are; ``None`` for today's."""

    source: Path | None = None

    def command(self, name: str) -> list[str]:
        """How to start one of the programs."""
        if self.source is None:
            return program(name)
        return [*self._python(), f"from {_MODULES[name]} import main; main()"]

    def check(self) -> None:
        """Holds when the programs are those of the old version, and not today's by some accident of paths."""
        assert self.source is not None
        shown = subprocess.run([*self._python(), _PROOF], capture_output=True, text=True, timeout=60, check=False)
        assert shown.stdout.startswith(str(self.source)), shown.stdout + shown.stderr

    def _python(self) -> list[str]:
        # Before the checkout that the environment knows, and inherited by every child; -P: not the directory we are in.
        return ["env", f"PYTHONPATH={self.source}:{self.source}/agent", sys.executable, "-P", "-c"]


TODAY: Final = Version()


def unpack_old(directory: Path) -> Version:
    """The version of ``COMMIT``, unpacked; it runs with the packages of today.

    Raises:
        AssertionError: the commit is not there; the message says what to do.
    """
    archive = subprocess.run(
        ["git", "archive", COMMIT, "shovey_trio", "agent"], cwd=_ROOT, capture_output=True, timeout=60, check=False
    )
    assert archive.returncode == 0, (
        f"this needs the history of the repository down to {COMMIT}: clone without --depth, or "
        f"`git fetch --unshallow`\n{archive.stderr.decode()}"
    )
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(directory, filter="data")
    old = Version(directory)
    old.check()
    return old


class MixedFleet(Fleet):
    """A fleet with a version for the controller and one for the agents; each enrols and starts by its own program."""

    def __init__(self, directory: Path, *, controller: Version, agent: Version) -> None:
        super().__init__(directory, settings={"presence.stream_lost_after": "0.5s"}, serf=None)
        self._agent = agent
        self._made_by = controller
        use(self.controller, "shovey-trio", controller)

    async def initialize(self) -> None:
        listen = [word for name, address in self.listeners.items() for word in (f"--{name}-listen", address)]
        await _run([*self._made_by.command("shovey-trio"), "init", "--data-dir", str(self.data.root), *listen])

    async def enroll(self, name: str, state_dir: Path, *, again: bool = False, split: str = "") -> None:
        assert (again, split) == (False, "")
        join = encode_join(await self.join_ticket(name))
        await _run([*self._agent.command("shovey-agent"), "enroll", "--state-dir", str(state_dir), join])

    async def add_node(self, spec: NodeSpec, *, serf: SerfAgentProcess | None) -> FleetNode:
        node = await super().add_node(spec, serf=serf)
        use(node.agent, "shovey-agent", self._agent)
        return node


def use(process: ManagedProcess, name: str, version: Version) -> None:
    """Makes a process one of this version from its next start on."""
    at = next(number for number, word in enumerate(process.command) if word in ("serve", "run"))
    process.command = [*version.command(name), *process.command[at:]]


async def _run(command: Sequence[str]) -> None:
    done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False, stdin=b"")
    assert done.returncode == 0, done.stderr.decode()


@asynccontextmanager
async def open_mixed(directory: Path, *, controller: Version, agent: Version) -> AsyncIterator[MixedFleet]:
    """The nodes ``NODES`` with the whitelist of ``demo.commands``, all up; at the end every process is ended."""
    fleet = MixedFleet(directory, controller=controller, agent=agent)
    try:
        await fleet.initialize()
        await fleet.controller.start()
        await fleet.wait_ready()
        for name in NODES:
            settings = {"reconnect.delay_max": "0.5s"}
            spec = NodeSpec(name=name, whitelist=commands(str(directory)), settings=settings)
            await (await fleet.add_node(spec, serf=None)).agent.start()
        await fleet.wait_up()
        yield fleet
        noise = fleet.noise()
        assert not noise, "\n\n".join(noise)
    finally:
        await fleet.end()  # noqa: ASYNC102 - shielded, with a deadline, in there
