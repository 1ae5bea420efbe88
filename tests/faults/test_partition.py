"""A network between daemon and agents that is cut, silent, or half-open; and nodes that say nothing for long."""

from __future__ import annotations

import pytest
import trio

from lab.history import JobRecord
from lab.limits import within
from lab.relay import Weather
from lab.workload import ended_by_itself
from shovey_trio.v1 import job_pb2 as pb

from .conftest import OpenBench

pytestmark = pytest.mark.slow

NODES = ("web-1", "web-2")


@pytest.mark.parametrize("weather", [Weather.CUT, Weather.SILENT])
@within(60)
async def test_a_run_in_a_partition_is_unknown_and_then_has_its_true_end_and_all_its_output(
    bench_of: OpenBench, weather: Weather
) -> None:
    # Two minutes of partition against 15 s until a node counts as lost are 4 s against 0.5 s here.
    async with bench_of(nodes=NODES) as bench, bench.open_client() as client:
        record = await bench.start_job(client, "chatter")
        await bench.wait_started(len(NODES))
        bench.relay.set_weather(weather)
        if weather is Weather.SILENT:
            # The streams are half-open until somebody's keepalive finds out; here it is a restart of the daemon.
            await bench.kill_daemon()
            await bench.start_daemon()
        unknown = [await bench.wait_state(client, record, node, pb.RUN_STATE_UNKNOWN) for node in NODES]
        assert all(run.HasField("unknown_since") and run.cause == "stream_lost" for run in unknown)
        await trio.sleep(4.0)
        for node in NODES:
            assert (await client.get_run(record.job_id, node)).state == pb.RUN_STATE_UNKNOWN
        assert await bench.settle() == []
        for node in NODES:
            run = await client.get_run(record.job_id, node)
            assert ended_by_itself(run.state)
            assert not run.HasField("unknown_since")


@within(60)
async def test_a_cancel_is_delivered_to_a_node_that_was_away_and_proven(bench_of: OpenBench) -> None:
    async with bench_of(nodes=NODES) as bench, bench.open_client() as client:
        record = await bench.start_job(client, "hostile")
        await bench.wait_started(len(NODES))
        bench.relay.set_weather(Weather.CUT)
        await bench.wait_state(client, record, "web-1", pb.RUN_STATE_UNKNOWN)
        await bench.cancel_job(client, record)
        waiting = await client.get_run(record.job_id, "web-1")
        assert (waiting.state, waiting.cancelling) == (pb.RUN_STATE_UNKNOWN, True)
        assert await bench.settle() == []
        assert (await client.get_run(record.job_id, "web-1")).state == pb.RUN_STATE_CANCELLED


@within(60)
async def test_a_node_that_is_away_for_longer_than_the_grace_has_crashed_and_what_it_says_later_is_kept(
    bench_of: OpenBench,
) -> None:
    async with bench_of(nodes=NODES, settings={"jobs.reconnect_grace": "1s"}) as bench, bench.open_client() as client:
        record: JobRecord = await bench.start_job(client, "chatter", ["web-1"], excused=frozenset({"node_lost"}))
        await bench.wait_started(1)
        bench.relay.set_weather(Weather.CUT)
        crashed = await bench.wait_state(client, record, "web-1", pb.RUN_STATE_CRASHED)
        assert crashed.cause == "node_lost"
        assert not crashed.HasField("late_report")
        assert await bench.settle() == []
        # The report of the node that is back is stored behind the end of the job, where no watcher waits for it.
        while True:
            run = await client.get_run(record.job_id, "web-1")
            if run.HasField("late_report"):
                break
            await trio.sleep(0.05)
        assert (run.state, run.late_report.state) == (pb.RUN_STATE_CRASHED, pb.RUN_STATE_FAILED)
        assert run.late_report.exit_code == 3


@within(60)
async def test_a_run_that_is_silent_for_long_is_running_and_its_stream_is_the_same(bench_of: OpenBench) -> None:
    # Half an hour against the 15 s of stream_lost_after is a factor of 120: 6 s against 0.05 s.
    async with bench_of(nodes=NODES, settings={"presence.stream_lost_after": "0.05s"}) as bench:
        async with bench.open_client() as client:
            record = await bench.start_job(client, "hostile")
            await bench.wait_started(len(NODES))
            attached = [bench.fleet.nodes[node].agent.log.read_text().count("controller.attached") for node in NODES]
            await trio.sleep(6.0)
            for node in NODES:
                assert (await client.get_run(record.job_id, node)).state == pb.RUN_STATE_RUNNING
            after = [bench.fleet.nodes[node].agent.log.read_text().count("controller.attached") for node in NODES]
            assert attached == after == [1, 1]
            await bench.cancel_job(client, record)
        assert await bench.settle() == []
