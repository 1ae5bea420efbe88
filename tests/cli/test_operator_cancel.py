"""``shovey job cancel``: it waits for the proof, and says of what kind it is."""

from __future__ import annotations

import json
import subprocess

import trio

from .conftest import OperatorRig


async def start_hanging(rig: OperatorRig, *nodes: str) -> str:
    done = await rig.run("job", "start", "-b", "hang", *nodes, "-o", "name")
    assert done.code == 0
    return done.out.strip()


async def test_it_waits_until_the_node_has_proven_it(rig: OperatorRig) -> None:
    job = await start_hanging(rig, "web-1")
    rig.controller.hold_proof = trio.Event()
    with trio.fail_after(30):
        process = await trio.lowlevel.open_process(
            rig.command("job", "cancel", job),
            env=dict(rig.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        said = b""
        while b"\n" not in said:
            said += await process.stderr.receive_some()
        assert said == b"cancelling: web-1\n"
        assert process.poll() is None
        rig.controller.hold_proof.set()
        table = b"".join([data async for data in process.stdout]).decode().splitlines()
        assert await process.wait() == 0
    assert table[1].split()[:2] == ["web-1", "cancelled"]
    assert "empty_cgroup" in table[1]


async def test_no_wait_returns_when_the_request_is_durable(rig: OperatorRig) -> None:
    job = await start_hanging(rig, "web-1", "web-2")
    rig.controller.hold_proof = trio.Event()
    done = await rig.run("job", "cancel", job, "--no-wait", "-o", "json")
    assert done.code == 0
    assert json.loads(done.out)["cancelling"] == ["web-1", "web-2"]
    assert rig.controller.jobs[job].message.cancel_requested


async def test_some_nodes_are_cancelled_and_the_others_go_on(rig: OperatorRig) -> None:
    job = await start_hanging(rig, "web-1", "web-2")
    done = await rig.run("job", "cancel", job, "web-2", "-o", "name")
    assert (done.code, done.out.split()) == (0, ["web-2"])
    status = json.loads((await rig.run("job", "status", job, "-o", "json")).out)
    assert {run["node"]: run["state"] for run in status["runs"]} == {"web-1": "running", "web-2": "cancelled"}


async def test_a_run_that_ended_before_is_not_cancelled(rig: OperatorRig) -> None:
    job = (await rig.run("job", "start", "hello", "web-1", "-o", "name")).out.strip()
    done = await rig.run("job", "cancel", job)
    assert done.code == 0
    assert "already ended: web-1" in done.err
    assert "nothing was left to cancel" in done.err


async def test_an_end_without_proof_is_exit_1(rig: OperatorRig) -> None:
    job = await start_hanging(rig, "web-1")
    rig.controller.proven = False
    done = await rig.run("job", "cancel", job)
    assert done.code == 1
    assert "cancel_unproven" in done.out


async def test_a_node_without_a_run_is_not_found(rig: OperatorRig) -> None:
    job = await start_hanging(rig, "web-1")
    done = await rig.run("job", "cancel", job, "web-2")
    assert done.code == 3
