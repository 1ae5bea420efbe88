"""``latency-real``: the same with a real agent process, which verifies, spools, syncs, forks and reports."""

from __future__ import annotations

from collections.abc import Sequence

from shovey_trio.bench.daemon_meter import cost_figures
from shovey_trio.bench.figures import Bar, Figure, figure
from shovey_trio.bench.stage import Stage
from shovey_trio.demo.fleet import NodeSpec

_NODE = "real-1"
_JOBS_PER_ROUND = 10


async def measure(stage: Stage) -> Sequence[Figure]:
    """Runs ten times ``rounds`` jobs, one after the other."""
    options = stage.options
    await stage.attach(options.agents)
    node = await stage.fleet.add_node(NodeSpec(name=_NODE, whitelist={"true": "true"}), serf=None)
    await node.agent.start()
    await stage.fleet.wait_up([_NODE])
    await stage.run_job("true", [_NODE], watch=True)
    with stage.daemon.measuring() as cost:
        took = [await stage.run_job("true", [_NODE], watch=True) for _ in range(_JOBS_PER_ROUND * options.rounds)]
    await node.agent.stop()
    name = f"job `true` on a real agent, {options.agents:,} simulated ones idle: start to complete"
    return [
        figure(name, took, bar=Bar(at=0.080, stretch=0.040)),
        *cost_figures(name, cost, each="job", count=len(took)),
    ]
