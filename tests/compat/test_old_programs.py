"""Agents of 4a4340d with today's controller, agents of today with a controller of 4a4340d, and upgrades of either.

A node and its controller are never upgraded at the same moment, so each of these pairs is a fleet that somebody has.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.limits import within
from lab.shared_fleet import keep
from shovey_trio.demo.commands import ALL_BYTES
from shovey_trio.demo.fleet import Fleet, run_program
from shovey_trio.demo.operator import STDERR, Operator, open_operator, state_of
from shovey_trio.v1 import job_pb2

from .versions import NODES, TODAY, Version, open_mixed, unpack_old, use

pytestmark = pytest.mark.slow

LINES = b"began\n" + b"".join(b"line %d\n" % n for n in range(1000))
PROVEN = {job_pb2.PROOF_KIND_EMPTY_SUBREAPER, job_pb2.PROOF_KIND_EMPTY_CGROUP}


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Version:
    return unpack_old(tmp_path_factory.mktemp("4a4340d"))


@pytest.fixture(scope="module", params=["old agents", "old controller"])
def fleet(request: pytest.FixtureRequest, old: Version) -> Iterator[Fleet]:
    controller, agent = (TODAY, old) if request.param == "old agents" else (old, TODAY)
    with keep(lambda directory: open_mixed(directory, controller=controller, agent=agent)) as fleet:
        yield fleet


def begin(directory: Path) -> None:
    """Closes the gate of the command ``held`` and forgets who went through."""
    for path in (*directory.glob("*.held"), directory / "go"):
        path.unlink(missing_ok=True)


def times_held(directory: Path, node: str) -> int:
    return len((directory / f"{node}.held").read_text().splitlines())


@within(60)
async def test_commands_run_and_their_output_and_ends_are_whole(fleet: Fleet) -> None:
    async with open_operator(fleet) as operator:
        done = await operator.run("bytes")
        assert done.states() == dict.fromkeys(NODES, "succeeded")
        for node in NODES:
            assert await operator.output(done.job.id, node) == ALL_BYTES
            assert await operator.output(done.job.id, node, STDERR) == ALL_BYTES[::-1]
        signalled = (await operator.run("signal", "a")).runs["a"]
        assert (state_of(signalled), signalled.cause, signalled.signal) == ("failed", "signalled", 10)
        refused = (await operator.run("no-such-command", "a")).runs["a"]
        assert (state_of(refused), refused.cause) == ("nacked", "not_whitelisted")


@within(60)
async def test_cancel_is_proven_and_timeout_is_the_node_s(fleet: Fleet) -> None:
    async with open_operator(fleet) as operator:
        job_id = await operator.start("stubborn", "a", grace=0.5)
        pids = [int(pid) for pid in (await operator.lines(job_id, "a", 1))[0].split()]
        await operator.client.cancel_job(job_id)
        run = (await operator.finished(job_id)).runs["a"]
        assert state_of(run) == "cancelled"
        assert run.proof in PROVEN
        assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
        late = (await operator.run("sleep", "b", timeout=1.0, grace=0.5)).runs["b"]
        assert (state_of(late), late.cause) == ("timed_out", "timed_out")


@within(90)
async def test_commands_outlive_a_killed_controller_and_a_killed_agent(fleet: Fleet) -> None:
    begin(fleet.directory)
    async with open_operator(fleet) as operator:
        job_id = await operator.start("held")
        for node in NODES:
            await operator.lines(job_id, node, 1)
        await fleet.controller.kill()
        await fleet.nodes["b"].agent.kill()
        (fleet.directory / "go").touch()
        await fleet.controller.start()
        await fleet.nodes["b"].agent.start()
        await finished_whole(fleet, operator, job_id)
        await fleet.wait_up()


@within(110)
async def test_upgrade_of_the_controller_and_then_of_an_agent_loses_no_running_command(
    old: Version, tmp_path: Path
) -> None:
    async with open_mixed(tmp_path, controller=old, agent=old) as fleet, open_operator(fleet) as operator:
        before = await operator.run("hello")
        job_id = await operator.start("held")
        for node in NODES:
            await operator.lines(job_id, node, 1)
        await fleet.controller.stop()
        use(fleet.controller, "shovey-trio", TODAY)
        await fleet.controller.start()
        await fleet.wait_up()
        await fleet.nodes["a"].agent.stop()
        use(fleet.nodes["a"].agent, "shovey-agent", TODAY)
        await fleet.nodes["a"].agent.start()
        await operator.reached(job_id, "a", "running")
        (fleet.directory / "go").touch()
        await finished_whole(fleet, operator, job_id)
        await fleet.wait_up()
        assert (await operator.run("true")).states() == dict.fromkeys(NODES, "succeeded")
        assert await operator.output(before.job.id, "a") == b"to stdout\n"
        assert (await operator.finished(before.job.id)).job == before.job
        verified = await run_program("shovey-trio", "audit", "verify", "--runs", "--data-dir", str(fleet.data.root))
        assert "records hold" in verified


async def finished_whole(fleet: Fleet, operator: Operator, job_id: str) -> None:
    finished = await operator.finished(job_id)
    assert {node: (state_of(run), run.exit_code) for node, run in finished.runs.items()} == dict.fromkeys(
        NODES, ("failed", 7)
    )
    for node in NODES:
        assert await operator.output(job_id, node) == LINES
        assert times_held(fleet.directory, node) == 1
