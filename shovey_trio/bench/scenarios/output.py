"""``output``: a hundred agents push output as fast as the daemon makes it durable, and somebody follows one of them."""

from __future__ import annotations

import time
from collections.abc import Sequence

import trio

from shovey_trio.bench.daemon_meter import cost_figures
from shovey_trio.bench.figures import Bar, Figure, figure
from shovey_trio.bench.simulated_run import Behaviour, Kind
from shovey_trio.bench.stage import Stage, expect
from shovey_trio.v1 import job_pb2

_AGENTS = 100
_MIB = 2**20


async def measure(stage: Stage) -> Sequence[Figure]:
    """Has them push ``output_mib`` together."""
    options = stage.options
    agents = min(options.agents, _AGENTS)
    await stage.attach(agents)
    size = options.output_mib * _MIB // agents
    await stage.swarm.behave({"flood": Behaviour(kind=Kind.FLOOD, size=size)})
    delays: list[float] = []
    nodes = stage.swarm.names[:agents]
    with stage.daemon.measuring() as cost:
        began = time.perf_counter()
        job = await stage.start("flood", nodes)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_follow, stage, job.id, nodes[0], delays)
            ended = await stage.finished(job.id)
            took = time.perf_counter() - began
    expect(ended, job_pb2.RUN_STATE_SUCCEEDED, agents)
    run = await stage.client.get_run(job.id, nodes[0])
    assert run.stdout_bytes == size
    name = f"output of {agents} agents together"
    rate = size * agents / _MIB / took
    return [
        figure(name, [rate], unit="MiB/s", bar=Bar(at=50, stretch=100, at_least=True), simulated=True),
        figure(f"{name}: read on the node to a follower", delays, bar=Bar(at=0.25, of="p99"), simulated=True),
        *cost_figures(name, cost, each="MiB", count=size * agents / _MIB, memory=Bar(at=256)),
    ]


async def _follow(stage: Stage, job_id: str, node: str, delays: list[float]) -> None:
    async with stage.client.read_output(job_id, node, follow=True) as answers:
        async for answer in answers:
            read_at = answer.chunk.read_at
            delays.append(time.time() - (read_at.seconds + read_at.nanos / 1e9))
