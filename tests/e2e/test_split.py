"""The agent in two parts: a network part without rights, a launcher as root, and a real controller.

As root, the network part runs as ``nobody``; elsewhere both parts are this account's, and all else is the same.
"""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from lab.limits import within
from shovey_agent.desk.launcher_trust import load_trust
from shovey_trio.core.trust.enrollment import encode_join
from shovey_trio.demo.commands import commands
from shovey_trio.demo.fleet import Fleet, FleetNode, NodeSpec, run_program
from shovey_trio.demo.operator import Operator, state_of
from shovey_trio.demo.processes import ManagedProcess, ProcessFailed, run_as
from shovey_trio.v1 import job_pb2, node_pb2

from .conftest import KeepFleet

pytestmark = pytest.mark.slow

LINES = b"began\n" + b"".join(b"line %d\n" % n for n in range(1000))


def network_account() -> str:
    """``nobody``, where this is root and nobody can run what is installed here; else this account."""
    own = pwd.getpwuid(os.geteuid()).pw_name
    if os.geteuid() != 0:
        return own
    probe = [*run_as("nobody"), sys.executable, "-c", "import shovey_agent.cli"]
    done = subprocess.run(probe, cwd="/", check=False, timeout=60)
    return "nobody" if done.returncode == 0 else own


@pytest.fixture(scope="module")
def fleet(keep_fleet: KeepFleet) -> Iterator[Fleet]:
    account = network_account()

    def nodes(directory: Path) -> list[NodeSpec]:
        directory.chmod(0o711)  # the network part finds its own directory in here
        whitelist = {**commands(str(directory)), "whoami": "id -u"}
        settings = {"reconnect.delay_max": "0.5s"}
        return [NodeSpec(name="a", whitelist=whitelist, settings=settings, split=account)]

    with keep_fleet(nodes, serf=False, settings={"presence.stream_lost_after": "0.5s"}) as fleet:
        yield fleet


@pytest.fixture(autouse=True)
def clean(fleet: Fleet) -> Iterator[None]:
    yield
    for path in (*fleet.directory.glob("*.held"), fleet.directory / "go"):
        path.unlink(missing_ok=True)


def parts(fleet: Fleet) -> tuple[FleetNode, ManagedProcess, ManagedProcess]:
    node = fleet.nodes["a"]
    assert node.launcher is not None
    return node, node.agent, node.launcher


def user_of(process: ManagedProcess) -> int:
    return os.stat(f"/proc/{process.pid}").st_uid


@within(60)
async def test_the_network_part_is_another_account_and_commands_run_as_the_launcher(
    fleet: Fleet, operator: Operator
) -> None:
    node, agent, launcher = parts(fleet)
    finished = await operator.run("whoami", "a")
    assert finished.states() == {"a": "succeeded"}
    assert await operator.output(finished.job.id, "a") == f"{os.geteuid()}\n".encode()
    assert user_of(launcher) == os.geteuid()
    assert user_of(agent) == pwd.getpwnam(node.spec.split).pw_uid
    # What decides about commands is nowhere that the network part can write, or even look.
    assert not (node.state_dir / "runs").exists()
    assert not (node.state_dir / "nonces").exists()
    assert (node.spool_dir.stat().st_mode & 0o777, node.spool_dir.stat().st_uid) == (0o700, os.geteuid())
    assert {path.owner() for path in node.state_dir.rglob("*")} == {node.spec.split}


@within(60)
async def test_a_command_is_refused_and_a_cancel_is_proven_across_the_socket(fleet: Fleet, operator: Operator) -> None:
    refused = (await operator.run("no such command", "a")).runs["a"]
    assert (state_of(refused), refused.cause) == ("nacked", "not_whitelisted")
    job_id = await operator.start("held", "a")
    await operator.lines(job_id, "a", 1)
    await operator.client.cancel_job(job_id)
    run = (await operator.finished(job_id)).runs["a"]
    assert state_of(run) == "cancelled"
    assert run.proof in {job_pb2.PROOF_KIND_EMPTY_SUBREAPER, job_pb2.PROOF_KIND_EMPTY_CGROUP}


@within(60)
@pytest.mark.parametrize("part", ["network part", "launcher", "both"])
async def test_a_command_outlives_either_part_and_runs_once(fleet: Fleet, operator: Operator, part: str) -> None:
    _, agent, launcher = parts(fleet)
    job_id = await operator.start("held", "a")
    await operator.lines(job_id, "a", 1)
    killed = {"network part": [agent], "launcher": [launcher], "both": [launcher, agent]}[part]
    for process in killed:
        await process.kill()
    (fleet.directory / "go").touch()
    for process in killed:
        await process.start()
    run = (await operator.finished(job_id)).runs["a"]
    assert (state_of(run), run.exit_code) == ("failed", 7)
    assert await operator.output(job_id, "a") == LINES
    assert len((fleet.directory / "a.held").read_text().splitlines()) == 1
    await fleet.wait_up()
    assert (await operator.run("whoami", "a")).states() == {"a": "succeeded"}


@within(60)
async def test_a_node_whose_launcher_is_away_is_down_and_up_again_with_it(fleet: Fleet, operator: Operator) -> None:
    _, _, launcher = parts(fleet)
    await launcher.stop()
    # Without somebody to take orders the network part does not stay with the controller.
    while (await operator.client.get_node("a")).status.presence != node_pb2.NODE_PRESENCE_DOWN:
        await trio.sleep(0.05)
    assert (await operator.run("whoami", "a")).states() == {"a": "unavailable"}
    await launcher.start()
    await fleet.wait_up()
    assert (await operator.run("whoami", "a")).states() == {"a": "succeeded"}


@within(60)
async def test_the_spool_is_cleared_once_the_report_is_durable(fleet: Fleet, operator: Operator) -> None:
    node, _, _ = parts(fleet)
    await operator.run("whoami", "a")
    with trio.fail_after(30):
        while [path.name for path in (node.spool_dir / "runs").iterdir()]:
            await trio.sleep(0.05)


@within(60)
async def test_a_key_set_that_the_root_signed_reaches_the_launcher_through_the_network_part(
    fleet: Fleet, operator: Operator
) -> None:
    node, _, _ = parts(fleet)

    def serial() -> int:
        return load_trust(node.spool_dir).keys.serial

    before = serial()
    await run_program("shovey-trio", "key", "rotate", "--data-dir", str(fleet.data.root))
    fleet.controller.send_signal(signal.SIGHUP)
    while serial() == before:
        await trio.sleep(0.05)
    assert (await operator.run("whoami", "a")).states() == {"a": "succeeded"}


@within(60)
async def test_root_enrols_both_parts_with_one_command(fleet: Fleet) -> None:
    node, _, _ = parts(fleet)
    state_dir, launcher = fleet.directory / "b", fleet.directory / "b-launcher"
    enroll = ["shovey-agent", "enroll", encode_join(await fleet.join_ticket("b")), "--state-dir", str(state_dir)]
    await run_program(*enroll, "--split", "--user", node.spec.split, "--launcher-dir", str(launcher))
    identity = load_trust(launcher).identity
    assert (identity.organization, identity.node) == ("default", "b")
    assert {path.owner() for path in (state_dir, *state_dir.iterdir())} == {node.spec.split}
    assert {path.stat().st_uid for path in (launcher, *launcher.iterdir())} == {os.geteuid()}
    with pytest.raises(ProcessFailed, match="ALREADY_ENROLLED"):
        await run_program(*enroll, "--split", "--user", node.spec.split, "--launcher-dir", str(launcher))
    with pytest.raises(ProcessFailed, match="CANNOT_SPLIT"):
        await run_program(*enroll, "--split", "--user", "no-such-account")
