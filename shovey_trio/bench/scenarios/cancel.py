"""``cancel``: from the call that cancels a running job until every run has been proven to be ended."""

from __future__ import annotations

import time
from collections.abc import Sequence

import trio

from shovey_trio.bench.daemon_meter import cost_figures
from shovey_trio.bench.figures import Bar, Figure, figure
from shovey_trio.bench.stage import Stage, expect
from shovey_trio.v1 import job_pb2

_POLL = 0.02


async def measure(stage: Stage) -> Sequence[Figure]:
    """Starts a job that waits for its cancel, ``rounds`` times."""
    options = stage.options
    await stage.attach(options.agents)
    nodes = stage.swarm.names[: options.agents]
    with stage.daemon.measuring() as cost:
        took = [await _one(stage, nodes) for _ in range(options.rounds)]
    name = f"cancel of {options.agents:,} runs"
    return [
        figure(f"{name}: call to last proof", took, bar=Bar(at=2.0, stretch=1.0), simulated=True),
        *cost_figures(name, cost, each="run", count=len(took) * options.agents, stall=Bar(at=0.1)),
    ]


async def _one(stage: Stage, nodes: Sequence[str]) -> float:
    job = await stage.start("wait", nodes)
    while True:
        if _running(await stage.client.get_job(job.id)) == len(nodes):
            break
        await trio.sleep(_POLL)
    began = time.perf_counter()
    await stage.client.cancel_job(job.id)
    ended = await stage.finished(job.id)
    took = time.perf_counter() - began
    expect(ended, job_pb2.RUN_STATE_CANCELLED, len(nodes))
    return took


def _running(job: job_pb2.Job) -> int:
    return sum(each.count for each in job.run_counts if each.state == job_pb2.RUN_STATE_RUNNING)
