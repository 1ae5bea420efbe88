"""Our agent as a schob under a real goiardi: jobs start, stream, finish, cancel, time out – without schob's faults."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from lab.goiardi import find_goiardi
from shovey_trio.core.serf.doorbell_plan import PlannedQuery
from shovey_trio.core.serf.records import QueryReceived
from shovey_trio.demo.serf_agents import find_serf
from shovey_trio.serf.connection import SerfConnection
from shovey_trio.serf.progress import QueryProgress
from tests.legacy.conftest import NODE, Rig, open_rig

pytestmark = [pytest.mark.goiardi, pytest.mark.serf, pytest.mark.slow]


async def _job_status(rig: Rig, job_id: str) -> str:
    status: str = (await rig.goiardi.call("GET", f"/shovey/jobs/{job_id}"))["status"]
    return status


async def test_jobs_start_stream_and_end_as_goiardi_knows_them(rig: Rig) -> None:
    goiardi = rig.goiardi
    job = await goiardi.start("hello", NODE)
    run = await goiardi.wait_run(job, NODE, "succeeded", "failed", "invalid", "nacked")
    assert (run["status"], run["exit_status"], run["error"]) == ("succeeded", 0, "")
    # Complete before the end was told: schob's last output comes after it.
    assert run["output"] == "hello\n"
    stream = await goiardi.output(job, NODE)
    assert (stream["output"], stream["is_last"]) == ("hello\n", True)
    assert (await goiardi.output(job, NODE, "stderr"))["is_last"] is True
    assert await _job_status(rig, job) == "complete"

    job = await goiardi.start("both", NODE)
    run = await goiardi.wait_run(job, NODE, "failed")
    assert (run["exit_status"], run["error"], run["output"], run["stderr"]) == (3, "exit status 3", "out\n", "err\n")

    job = await goiardi.start("suicide", NODE)
    run = await goiardi.wait_run(job, NODE, "failed")
    assert (run["exit_status"], run["error"]) == (255, "signal: killed")

    job = await goiardi.start("not there", NODE)
    run = await goiardi.wait_run(job, NODE, "nacked")
    assert run["error"] == "command not there not in whitelist"

    job = await goiardi.start("missing", NODE)
    run = await goiardi.wait_run(job, NODE, "invalid")
    assert "/nonexistent/program" in run["error"]


async def test_no_byte_is_lost_doubled_or_cut(rig: Rig) -> None:
    goiardi = rig.goiardi
    flood, slow, raw = [await goiardi.start(command, NODE) for command in ("flood", "slow", "bytes")]
    run = await goiardi.wait_run(flood, NODE, "succeeded")
    assert run["output"] == ("0123456789\n" * 20_000)[:200_000]
    assert (await goiardi.output(flood, NODE))["is_last"] is True
    run = await goiardi.wait_run(slow, NODE, "succeeded")
    assert run["output"] == "".join(f"é{number}" for number in range(1, 9))
    assert (await goiardi.output(slow, NODE))["last_seq"] > 2  # told while it ran
    run = await goiardi.wait_run(raw, NODE, "succeeded")
    assert run["output"] == "\ufffd\ufffdok\ufffd"  # JSON has no other word for it


async def test_cancel_and_timeout_end_the_whole_tree(rig: Rig) -> None:
    goiardi = rig.goiardi
    sleepy, stubborn = await goiardi.start("sleepy", NODE), await goiardi.start("stubborn", NODE)
    late = await goiardi.start("stubborn", NODE, run_timeout=2)
    for job in (sleepy, stubborn, late):
        while "started" not in (await goiardi.output(job, NODE))["output"]:  # noqa: ASYNC110 - another program changes it
            await trio.sleep(0.1)
    assert len(_commands(rig)) >= 3
    await goiardi.cancel(sleepy)
    await goiardi.cancel(stubborn)
    run = await goiardi.wait_run(late, NODE, "failed")
    assert run["error"] == f"Job {late} on node {NODE} timed out"
    while _commands(rig):  # noqa: ASYNC110 - another program changes it
        await trio.sleep(0.1)
    assert [(await goiardi.run(job, NODE))["status"] for job in (sleepy, stubborn)] == ["cancelled", "cancelled"]
    # The node's own word arrives after goiardi's; it ends the streams, which schob leaves open for ever.
    while not (await goiardi.output(stubborn, NODE))["is_last"]:  # noqa: ASYNC110 - another program changes it
        await trio.sleep(0.1)


async def test_a_killed_agent_loses_neither_the_command_nor_its_output(rig: Rig) -> None:
    goiardi = rig.goiardi
    job = await goiardi.start("slow", NODE)
    while not (await goiardi.output(job, NODE))["output"]:  # noqa: ASYNC110 - another program changes it
        await trio.sleep(0.05)
    await rig.schob.process.kill()
    await trio.sleep(0.5)
    await rig.schob.process.start()
    run = await goiardi.wait_run(job, NODE, "succeeded")
    assert run["output"] == "".join(f"é{number}" for number in range(1, 9))
    await _until_forgotten(rig)


async def test_report_and_output_arrive_once_after_goiardi_was_killed_while_the_command_ran(tmp_path: Path) -> None:
    if find_serf() is None or find_goiardi() is None:
        pytest.skip("needs serf and goiardi")
    async with open_rig(tmp_path, keeps_data=True) as rig:
        goiardi, log = rig.goiardi, rig.schob.process.log
        job = await goiardi.start("gate", NODE, run_timeout=90)
        while (await goiardi.output(job, NODE))["output"] != "before\n":  # noqa: ASYNC110 - another program changes it
            await trio.sleep(0.1)
        await goiardi.wait_frozen()
        await goiardi.process.kill()
        rig.schob.gate.touch()
        # The command has ended, and nobody takes its output: schob tries once and forgets it.
        while log.read_text().count("report.repeated") < 2:  # noqa: ASYNC110 - another program changes it
            await trio.sleep(0.1)
        await goiardi.process.start()
        await goiardi.ready()
        run = await goiardi.wait_run(job, NODE, "failed", "succeeded", "killed")
        assert (run["status"], run["exit_status"], run["output"]) == ("failed", 7, "before\nafter\n")
        stream = await goiardi.output(job, NODE)
        assert (stream["output"], stream["is_last"]) == ("before\nafter\n", True)
        assert await _job_status(rig, job) == "complete"
        await _until_forgotten(rig)
        assert [line.count(job) for line in log.read_text().splitlines() if "run.reported" in line] == [1]


async def test_nothing_on_the_ring_ends_the_agent_or_runs_twice(rig: Rig) -> None:
    goiardi = rig.goiardi
    seen: list[bytes] = []
    async with rig.serf.connect() as listening:
        subscription = await listening.subscribe("query:shovey")
        job = await goiardi.start("hello", NODE)
        await goiardi.wait_run(job, NODE, "succeeded")
        async for record in subscription:
            assert isinstance(record, QueryReceived)
            seen.append(record.payload)
            break
    (order,) = seen
    log = rig.schob.process.log
    async with rig.serf_srv.connect() as ring:
        for payload, refused in (
            (b"not json", "order.malformed"),
            (b"\xff" * 200, "order.malformed"),
            (b"{}", "order.malformed"),
            (b'{"action":"start","command":1}', "order.malformed"),
            (order, "replayed"),
            (order.replace(b"hello", b"flood"), "bad_signature"),
        ):
            await _query_until_told(ring, payload, log, refused)
        # The serf agent of the node goes away and comes back: schob would end here.
        await rig.serf.kill()
        await trio.sleep(0.5)
        await rig.serf.start(join=[rig.serf_srv.gossip_port])
        await rig.serf_srv.wait_alive(["goiardi-srv", NODE])
    later = None
    while later is None:
        # Right after its restart, the agent's link to serf may not be back: a query finds nobody and is gone.
        candidate = await goiardi.start("hello", NODE)
        with trio.move_on_after(4):
            later = await goiardi.wait_run(candidate, NODE, "succeeded")
    assert later["output"] == "hello\n"
    run = await goiardi.run(job, NODE)
    assert (run["status"], run["output"]) == ("succeeded", "hello\n")
    told = log.read_text()
    accepted = [line for line in told.splitlines() if "run.accepted" in line and job in line]
    assert len(accepted) == 1


async def _until_forgotten(rig: Rig) -> None:
    """Waits until the agent keeps nothing of any run; it cleans up after the server has its last report."""
    while any(list((rig.schob.state_dir / name).iterdir()) for name in ("runs", "legacy")):  # noqa: ASYNC110 - another program changes it
        await trio.sleep(0.05)


def _commands(rig: Rig) -> list[int]:
    """Living processes of the rig's commands."""
    marker = f"SHOVEY_NODE={NODE}".encode()
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            environment = (directory / "environ").read_bytes().split(b"\0")
            state = (directory / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if marker in environment and state != "Z":
            found.append(int(directory.name))
    return found


async def _query_until_told(ring: SerfConnection, payload: bytes, log: Path, refusal: str) -> None:
    """Send a payload to the node until its agent says in its log that it refused it.

    Serf acks a query before any of its listeners has it, and gossip may lose one: the agent's own word is the proof.
    """
    before = log.read_text().count(refusal)
    while True:
        await _query(ring, payload)
        with trio.move_on_after(2):
            while log.read_text().count(refusal) == before:  # noqa: ASYNC110 - another program changes it
                await trio.sleep(0.05)
            return


async def _query(ring: SerfConnection, payload: bytes) -> None:
    progress = QueryProgress([NODE], on_settled=lambda: None)
    query = PlannedQuery(
        name="shovey",
        payload=payload,
        filter_nodes=(NODE,),
        targets=(NODE,),
        request_ack=True,
        timeout=5.0,
        size=0,
    )
    await ring.query(query, progress)
    while NODE not in progress.acked and not progress.settled:
        await progress.wait_changed()
