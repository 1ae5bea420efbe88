"""A machine that gives no thread and no process for a while: daemon and agent stay up, say so, and go on."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from lab.limits import within
from shovey_agent.supervisor.proc_posix import descendants
from shovey_trio.demo.fleet import Fleet, FleetNode, NodeSpec, open_fleet
from shovey_trio.demo.operator import Operator, open_operator, request, state_of
from shovey_trio.demo.processes import ManagedProcess

NOBODY = 65_534
# Who still reads everything: Python may be in root's home.
AS_NOBODY = [
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
    *("--inh-caps=+dac_override", "--ambient-caps=+dac_override"),
]
SHORTAGE = 12.0  # longer than trio keeps a thread that has nothing to do

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root to be somebody else"),
]


@pytest.fixture
def directory() -> Iterator[Path]:
    """Not below pytest's own, where nobody else may look."""
    with tempfile.TemporaryDirectory(prefix="shovey-processes-") as made:
        yield Path(made)


async def _limit(process: ManagedProcess, most: str) -> None:
    """Sets how many threads and processes of its account a program and all below it may find when it starts one."""
    assert process.pid is not None
    for pid in (process.pid, *(stat.pid for stat in descendants({process.pid}))):
        await trio.run_process([*AS_NOBODY, "prlimit", f"--pid={pid}", f"--nproc={most}:"])


async def _restart_as_nobody(fleet: Fleet, node: FleetNode) -> None:
    """Limits on processes do not hold for root."""
    for process in (node.agent, fleet.controller):
        await process.stop()
        process.command = [*AS_NOBODY, *process.command]
    for path in (fleet.directory, *fleet.directory.rglob("*")):
        if not path.is_relative_to(fleet.data.admin):
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    for process in (fleet.controller, node.agent):
        await process.start()


async def _run(operator: Operator) -> str:
    [run] = (await operator.run("true", "web-1")).runs.values()
    return state_of(run)


@within(120)
async def test_daemon_and_agent_stay_up_without_threads_and_processes_and_go_on(directory: Path) -> None:
    spec = NodeSpec(name="web-1", whitelist={"true": "/bin/true"})
    async with open_fleet(directory, [spec], serf=False) as fleet:
        node = fleet.nodes["web-1"]
        await _restart_as_nobody(fleet, node)
        await fleet.wait_ready()
        await fleet.wait_up()
        async with open_operator(fleet) as operator:
            assert await _run(operator) == "succeeded"
            pids = (fleet.controller.pid, node.agent.pid)
            for process in (fleet.controller, node.agent):
                await _limit(process, "1")
            answer = await operator.client.start_job(request("true", "web-1"))
            with trio.move_on_after(SHORTAGE):
                while True:
                    fleet.controller.check()
                    node.agent.check()
                    await trio.sleep(0.5)
            for process in (fleet.controller, node.agent):
                await _limit(process, "4096")
            [run] = (await operator.finished(answer.job.id)).runs.values()
            assert state_of(run) == "succeeded"
            assert await _run(operator) == "succeeded"
            assert pids == (fleet.controller.pid, node.agent.pid)
        told = fleet.controller.log.read_text() + node.agent.log.read_text()
        assert "no supervisor could be forked" in told or "thread.refused" in told
