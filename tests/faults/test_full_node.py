"""A node whose disk is full: it refuses what it cannot remember, and loses nothing of what it has taken."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import trio

from lab.faults import FaultBench
from lab.limits import within
from shovey_agent.desk.nonces import NonceVerdict, open_nonces
from shovey_trio.observe import failpoints
from shovey_trio.v1 import job_pb2 as pb

from .conftest import OpenBench

pytestmark = pytest.mark.slow

NODES = ("web-1",)


async def run_on(bench: FaultBench, command: str, *excused: str) -> pb.Run:
    async with bench.open_client() as client:
        record = await bench.start_job(client, command, excused=frozenset(excused))
        assert await bench.settle_under_fault() == []
        return await client.get_run(record.job_id, "web-1")


POINTS = (
    "nonces.append.before",
    "nonces.append.written",
    "spool.create.before",
    "spool.exit.reserve.empty",
    "spool.order.empty",
    "spool.spec.empty",
    "spool.create.after",
)


@within(90)
async def test_a_node_without_room_refuses_the_run_by_name_and_takes_the_next_one_when_there_is(
    bench_of: OpenBench,
) -> None:
    async with bench_of(nodes=NODES) as bench:
        for point in POINTS:
            bench.set_failpoints(f"{point} error ENOSPC")
            refused = await run_on(bench, "quick", "spool_full")
            assert (refused.state, refused.cause) == (pb.RUN_STATE_NACKED, "spool_full"), point
            assert bench.passes(point)
            bench.set_failpoints()
            assert (await run_on(bench, "quick")).state == pb.RUN_STATE_SUCCEEDED, point


@within(60)
async def test_a_disk_that_is_full_while_a_command_writes_costs_output_that_is_counted_and_not_the_command(
    bench_of: OpenBench,
) -> None:
    async with bench_of(nodes=NODES) as bench:
        bench.set_failpoints("spool.append.before error ENOSPC skip=1")
        run = await run_on(bench, "chatter")
        assert (run.state, run.exit_code) == (pb.RUN_STATE_FAILED, 3)
        assert run.dropped_bytes > 0


@within(60)
async def test_a_report_that_cannot_be_marked_is_still_cleared(bench_of: OpenBench) -> None:
    async with bench_of(nodes=NODES) as bench:
        bench.set_failpoints("spool.reported.before error ENOSPC")
        assert (await run_on(bench, "quick")).state == pb.RUN_STATE_SUCCEEDED
        # The node reports, is confirmed, and frees the room that it lacks.
        assert (await run_on(bench, "quick")).state == pb.RUN_STATE_SUCCEEDED
        assert bench.passes("spool.reported.before")
        assert bench.fleet.nodes["web-1"].agent.log.read_text().count("controller.attached") == 1


OPEN_FULL = """
import sys, trio
from functools import partial
from pathlib import Path
from shovey_agent.desk.nonces import open_nonces
print(trio.run(partial(open_nonces, Path(sys.argv[1]))).holds(b"used"))
"""


async def test_an_agent_on_a_full_disk_comes_up_with_its_nonces_and_cuts_half_a_line(tmp_path: Path) -> None:
    path, plan = tmp_path / "nonces", tmp_path / "plan"
    nonces = await open_nonces(path)
    assert await nonces.admit(b"used", expires_at=50.0, now=1.0) is NonceVerdict.FRESH
    with path.open("ab") as file:
        file.write(b"60.0 ab")
    plan.write_text("spool.nonces.new.empty error ENOSPC\n")
    environ = {"PYTHONPATH": os.pathsep.join(sys.path), "PATH": os.environ["PATH"], "SHOVEY_FAILPOINTS": str(plan)}
    with trio.fail_after(30):
        done = await trio.run_process([sys.executable, "-c", OPEN_FULL, str(path)], env=environ, capture_stdout=True)
    assert done.stdout.splitlines()[-1] == b"True"
    assert failpoints.passes(str(plan), "spool.nonces.new.empty") == 1
    assert path.read_bytes().endswith(b"\n")
    again = await open_nonces(path)
    assert await again.admit(b"used", expires_at=50.0, now=1.0) is NonceVerdict.REPLAYED
