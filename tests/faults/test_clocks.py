"""Clocks of real processes are set, on both sides, on both kinds of link: nodes stay in service, no run ends by it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio

from lab.clocks import CONTROLLER, STEPS
from lab.faults import FaultBench
from lab.limits import within
from shovey_trio.rpc.client.client import ShoveyClient
from shovey_trio.v1 import job_pb2 as job_pb

from .conftest import OpenBench

# Seconds within which every node must be in service once both clocks are right.
IN_SERVICE = 60.0


async def runs_on(bench: FaultBench, client: ShoveyClient, nodes: Sequence[str]) -> None:
    """A job on these nodes succeeds."""
    record = await bench.start_job(client, "quick", nodes, watch=False)
    for node in nodes:
        run = await bench.wait_end(client, record, node)
        assert run.state == job_pb.RUN_STATE_SUCCEEDED, run


async def followed(client: ShoveyClient, count: int) -> None:
    """Waits until the controller has taken over so many steps."""
    while (await client.get_server_info()).clock_steps < count:
        await trio.sleep(0.1)


@pytest.mark.slow
@within(240)
async def test_orders_are_taken_and_no_run_ends_while_the_controllers_clock_is_set_to_and_fro(
    bench_of: OpenBench,
) -> None:
    commands = {"long": {"argv": ["sleep", "1000"]}}
    async with bench_of(nodes=("web-1",), commands=commands) as bench, bench.open_client() as client:
        long = await bench.start_job(client, "long", watch=False)
        await bench.wait_state(client, long, "web-1", job_pb.RUN_STATE_RUNNING)
        for number, step in enumerate(STEPS):
            for count, ahead in ((2 * number + 1, step), (2 * number + 2, 0.0)):
                bench.clocks.set(CONTROLLER, ahead)
                await runs_on(bench, client, ["web-1"])
                await followed(client, count)
                await runs_on(bench, client, ["web-1"])
        assert (await client.get_run(long.job_id, "web-1")).state == job_pb.RUN_STATE_RUNNING
        await bench.cancel_job(client, long)
        await bench.wait_state(client, long, "web-1", job_pb.RUN_STATE_CANCELLED)


@pytest.mark.slow
@within(240)
async def test_orders_are_taken_and_no_run_ends_while_a_nodes_clock_is_set_to_and_fro(bench_of: OpenBench) -> None:
    commands = {"long": {"argv": ["sleep", "1000"], "timeout": 900}}
    async with bench_of(nodes=("web-1",), commands=commands) as bench, bench.open_client() as client:
        long = await bench.start_job(client, "long", watch=False)
        await bench.wait_state(client, long, "web-1", job_pb.RUN_STATE_RUNNING)
        for step in STEPS:
            for ahead in (step, 0.0):
                bench.clocks.set("web-1", ahead)
                await runs_on(bench, client, ["web-1"])
                # The next agent adopts the command, and judges orders by the controller's clock too.
                await bench.kill_agent("web-1")
                await bench.start_agent("web-1")
                await runs_on(bench, client, ["web-1"])
        assert (await client.get_run(long.job_id, "web-1")).state == job_pb.RUN_STATE_RUNNING
        await bench.cancel_job(client, long)
        await bench.wait_state(client, long, "web-1", job_pb.RUN_STATE_CANCELLED)


@pytest.mark.slow
@pytest.mark.serf
@pytest.mark.parametrize("wrong", [CONTROLLER, "db-1", "both"])
@within(400)
async def test_every_node_is_in_service_within_a_minute_once_both_clocks_are_right(
    bench_of: OpenBench, wrong: str
) -> None:
    nodes = ("web-1", "db-1")
    async with (
        bench_of(nodes=nodes[:1], on_demand=nodes[1:], serf=True) as bench,
        bench.open_client() as client,
    ):
        for step in STEPS:
            for name in (CONTROLLER, *nodes) if wrong == "both" else (wrong,):
                bench.clocks.set(name, step)
            # Whatever becomes of it: doorbells between clocks that differ may wake nobody.
            await bench.start_job(client, "quick", nodes, watch=False)
            await trio.sleep(1.5)  # so that the step is noticed, and perhaps taken over
            bench.clocks.set_right()
            # What is started in the moment of the change may still go out by the wrong time, and end for it.
            late: Sequence[str] = nodes
            with trio.fail_after(IN_SERVICE):
                while late:
                    record = await bench.start_job(client, "quick", late, watch=False)
                    ended = [await bench.wait_end(client, record, node) for node in late]
                    late = [run.node for run in ended if run.state != job_pb.RUN_STATE_SUCCEEDED]
