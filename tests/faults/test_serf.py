"""Serf that dies under a running daemon: seen in health and status, and in nothing else."""

from __future__ import annotations

import pytest
import trio

from lab.faults import FaultBench
from lab.limits import within
from shovey_trio.v1 import job_pb2 as pb

from .conftest import OpenBench

pytestmark = [pytest.mark.slow, pytest.mark.serf]


async def wait_serf(bench: FaultBench, serving: bool) -> None:
    while await bench.is_serving("serf") != serving:  # noqa: ASYNC110 - asked over the network
        await trio.sleep(0.05)


@within(90)
async def test_serf_away_is_seen_in_health_and_status_and_streams_carry_on(bench_of: OpenBench) -> None:
    async with bench_of(nodes=("web-1",), serf=True) as bench, bench.open_client() as client:
        await wait_serf(bench, serving=True)
        serf, other = bench.fleet.serf, bench.fleet.nodes["web-1"].serf
        assert serf is not None
        assert other is not None
        await serf.kill()
        await wait_serf(bench, serving=False)
        info = (await client.get_server_info()).serf
        assert (info.configured, info.connected) == (True, False)
        assert info.last_error
        assert await bench.is_serving()
        record = await bench.start_job(client, "quick")
        assert await bench.settle() == []
        assert (await client.get_run(record.job_id, "web-1")).route == pb.ROUTE_STREAM
        await serf.start(join=[other.gossip_port])
        await wait_serf(bench, serving=True)
        assert (await client.get_server_info()).serf.connected
