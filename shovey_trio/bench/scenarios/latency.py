"""``latency``: one job on one agent while the others are attached and idle, as its watcher sees it."""

from __future__ import annotations

from collections.abc import Sequence

from shovey_trio.bench.daemon_meter import cost_figures
from shovey_trio.bench.figures import Bar, Figure, figure
from shovey_trio.bench.stage import Stage

_JOBS_PER_ROUND = 10


async def measure(stage: Stage) -> Sequence[Figure]:
    """Runs ten times ``rounds`` jobs, one after the other."""
    options = stage.options
    await stage.attach(options.agents)
    node = stage.swarm.names[:1]
    await stage.run_job("true", node, watch=True)
    with stage.daemon.measuring() as cost:
        took = [await stage.run_job("true", node, watch=True) for _ in range(_JOBS_PER_ROUND * options.rounds)]
    name = f"job `true` on 1 of {options.agents:,} agents: start to complete"
    return [
        figure(name, took, bar=Bar(at=0.025, stretch=0.010), simulated=True),
        *cost_figures(name, cost, each="job", count=len(took)),
    ]
