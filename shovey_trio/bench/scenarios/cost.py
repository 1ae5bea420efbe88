"""``cost``: CPU of the daemon per run for fleets of 100, 1,000 and 10,000 agents: nothing may grow with them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from shovey_trio.bench.figures import Bar, Figure, figure
from shovey_trio.bench.stage import Stage

_SIZES = (100, 1_000, 10_000)
# Runs that are measured at each size, so that what is done once a second counts for little.
_RUNS = 5_000
_JOBS_AT_MOST = 25


async def measure(stage: Stage) -> Sequence[Figure]:
    """Measures at each size up to ``agents``; for fewer agents than 100, at that one size."""
    agents = stage.options.agents
    sizes = [size for size in _SIZES if size <= agents] or [agents]
    figures: list[Figure] = []
    costs: list[float] = []
    await stage.detach()
    for size in sizes:
        await stage.attach(size)
        nodes = stage.swarm.names[:size]
        await stage.run_job("true", nodes)
        jobs = min(math.ceil(_RUNS / size), _JOBS_AT_MOST)
        with stage.daemon.measuring() as cost:
            for _ in range(jobs):
                await stage.run_job("true", nodes)
        costs.append(cost.cpu / (jobs * size))
        figures.append(figure(f"{size:,} agents: daemon CPU per run", costs[-1:]))
    for size, before, after in zip(sizes[1:], costs, costs[1:], strict=False):
        growth = figure(
            f"{size // 10:,} → {size:,} agents: CPU per run grows by", [after / before], unit="×", bar=Bar(at=1.3)
        )
        figures.append(growth)
    return figures
