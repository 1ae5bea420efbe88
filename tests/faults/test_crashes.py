"""kill -9 at every step: of the daemon's writes, of an agent's spool, of a supervisor. The history stays true."""

from __future__ import annotations

import pytest
import trio

from lab.chaos_faults import AGENT_POINTS, DAEMON_POINTS, SUPERVISOR_POINTS
from lab.faults import FaultBench, until
from lab.history import Violation
from lab.limits import within

from .conftest import OpenBench

pytestmark = pytest.mark.slow

NODES = ("web-1", "web-2")


async def load(bench: FaultBench, excused: frozenset[str] = frozenset()) -> None:
    """Jobs that end at once, well and badly, and one that has to be cancelled, on every node."""
    async with bench.open_client() as client:
        hostile = await bench.start_job(client, "hostile", excused=excused)
        for command in ("quick", "fails"):
            await bench.start_job(client, command, excused=excused)
        await bench.cancel_job(client, hostile)


async def crash_at(bench: FaultBench, point: str, excused: frozenset[str] = frozenset()) -> list[Violation]:
    """Lets whoever passes a point first die there, under load; asserts that somebody did."""
    bench.set_failpoints(f"{point} crash")
    async with bench.kept_running():
        await load(bench, excused)
        await until(lambda: bench.passes(point) > 0)
    return await bench.settle()


@within(110)
async def test_daemon_killed_at_every_write_loses_nothing_and_runs_nothing_twice(bench_of: OpenBench) -> None:
    async with bench_of(nodes=NODES) as bench:
        for point in DAEMON_POINTS:
            if point == "store.write_node.after":
                continue  # passed by an agent that attaches, not by a job
            assert await crash_at(bench, point) == [], point


@within(110)
async def test_agent_killed_at_every_spool_step_runs_nothing_twice_and_tells_every_end(bench_of: OpenBench) -> None:
    excused = frozenset({"replayed", "supervisor_lost/never_started", "node_down"})
    async with bench_of(nodes=NODES) as bench:
        for point in AGENT_POINTS:
            assert await crash_at(bench, point, excused) == [], point


@within(110)
async def test_supervisor_killed_at_every_step_is_told_as_lost_and_nothing_survives_it(bench_of: OpenBench) -> None:
    async with bench_of(nodes=NODES) as bench:
        for point in SUPERVISOR_POINTS:
            assert await crash_at(bench, point, frozenset({"supervisor_lost"})) == [], point


@within(90)
async def test_daemon_and_agents_killed_together_lose_nothing(bench_of: OpenBench) -> None:
    async with bench_of(nodes=NODES) as bench, bench.open_client() as client:
        await bench.start_job(client, "chatter")
        await bench.wait_started(len(NODES))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.kill_daemon)
            for node in NODES:
                nursery.start_soon(bench.kill_agent, node)
        assert await bench.settle() == []
