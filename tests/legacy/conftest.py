"""What the tests of old nodes share: a real goiardi and serf agents, and agents of ours that work as schobs."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from lab.goiardi import Goiardi, find_goiardi, open_goiardi
from shovey_trio.demo.processes import ManagedProcess, program
from shovey_trio.demo.serf_agents import SerfAgentProcess, find_serf, open_serf_agents

# Unlike any other on this machine: tests look for its commands by it.
NODE = f"schob-{uuid.uuid4().hex[:8]}"
HARD_LIMIT = 100.0

_PYTHON = "/usr/bin/env python3 -c"
WHITELIST: Mapping[str, str] = {
    "hello": "echo hello",
    "both": "sh -c 'echo out; echo err >&2; exit 3'",
    "sleepy": "sh -c 'echo started; sleep 600'",
    "stubborn": """sh -c 'trap "" TERM INT; echo started; sleep 600 & wait; sleep 600'""",
    "suicide": "sh -c 'kill -9 $$'",
    "missing": "/nonexistent/program",
    "flood": "sh -c 'yes 0123456789 | head -c 200000'",
    "slow": "sh -c 'for i in 1 2 3 4 5 6 7 8; do printf é$i; sleep 0.2; done'",
    "bytes": r"printf '\377\376ok\303'",
    # Goes on when the test has made the file (``Schob.gate``).
    "gate": "sh -c 'echo before; while [ ! -e \"{gate}\" ]; do sleep 0.05; done; echo after; exit 7'",
}


class Schob:
    """Our agent in legacy mode, as a process."""

    def __init__(self, process: ManagedProcess, state_dir: Path, gate: Path) -> None:
        self.process = process
        self.state_dir = state_dir
        self.gate = gate


def make_schob(
    directory: Path, *, node: str, endpoint: str, key: Path, signing_key: Path, serf: SerfAgentProcess
) -> Schob:
    """The agent with schob's own flags, not started."""
    whitelist = directory / f"{node}-whitelist.json"
    gate = directory / f"{node}-gate"
    commands = {name: line.replace("{gate}", str(gate)) for name, line in WHITELIST.items()}
    whitelist.write_text(json.dumps({"whitelist": commands}))
    state_dir = directory / f"{node}-state"
    flags = ["-e", endpoint, "-n", node, "-k", str(key), "-w", str(whitelist), "-p", str(signing_key)]
    flags += ["--serf-addr", f"127.0.0.1:{serf.rpc_port}", "--time-slew", "15m"]
    flags += ["--queue-save-file", str(directory / f"{node}-queue")]
    command = [*program("shovey-agent"), "run", "--legacy", *flags, "--state-dir", str(state_dir)]
    return Schob(ManagedProcess(command, log=directory / f"{node}.log"), state_dir, gate)


class Rig:
    """A goiardi, its serf agent, a node's serf agent and our agent on it."""

    def __init__(self, *, goiardi: Goiardi, schob: Schob, serf: SerfAgentProcess, serf_srv: SerfAgentProcess) -> None:
        self.goiardi = goiardi
        self.schob = schob
        self.serf = serf
        self.serf_srv = serf_srv


@asynccontextmanager
async def open_rig(directory: Path, *, keeps_data: bool = False) -> AsyncIterator[Rig]:
    """Everything started, and the node up.

    Args:
        keeps_data: goiardi does, so that it may be killed and started again.
    """
    with trio.fail_after(HARD_LIMIT):
        async with (
            open_serf_agents(["goiardi-srv", NODE], directory=directory) as (serf_srv, serf),
            open_goiardi(directory, serf=serf_srv, keeps_data=keeps_data) as goiardi,
        ):
            key = await goiardi.add_node(NODE)
            schob = make_schob(
                directory, node=NODE, endpoint=goiardi.url, key=key, signing_key=goiardi.signing_key, serf=serf
            )
            try:
                await schob.process.start()
                await goiardi.wait_node(NODE)
                yield Rig(goiardi=goiardi, schob=schob, serf=serf, serf_srv=serf_srv)
                schob.process.check()
            finally:
                with trio.CancelScope(deadline=trio.current_time() + 25.0, shield=True):
                    await schob.process.stop()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    """A rig of the test's own."""
    if find_serf() is None or find_goiardi() is None:
        pytest.skip("needs serf and goiardi")
    async with open_rig(tmp_path) as opened:
        yield opened
