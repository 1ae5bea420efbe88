"""``fanout``: one job on every agent, from the call that starts it until all results are durable."""

from __future__ import annotations

from collections.abc import Sequence

from shovey_trio.bench.daemon_meter import cost_figures
from shovey_trio.bench.figures import Bar, Figure, figure
from shovey_trio.bench.stage import Stage

_LARGE = 5_000


async def measure(stage: Stage) -> Sequence[Figure]:
    """Runs the job ``rounds`` times unwatched and as often watched, after one that warms up."""
    options = stage.options
    await stage.attach(options.agents)
    nodes = stage.swarm.names[: options.agents]
    await stage.run_job("true", nodes)
    with stage.daemon.measuring() as cost:
        took = [await stage.run_job("true", nodes) for _ in range(options.rounds)]
    watched = [await stage.run_job("true", nodes, watch=True) for _ in range(options.rounds)]
    large = options.agents > _LARGE
    name = f"job `true`, {options.agents:,} agents"
    return [
        figure(name, took, bar=Bar(at=10.0, stretch=5.0) if large else Bar(at=1.0, stretch=0.5), simulated=True),
        figure(f"{name}, watched", watched, simulated=True),
        *cost_figures(
            name,
            cost,
            each="run",
            count=options.rounds * options.agents,
            memory=Bar(at=1536.0) if large else None,
            stall=Bar(at=0.1),
        ),
    ]
