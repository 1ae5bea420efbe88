"""``attach``: what a restart of the controller or of its network brings – every agent connects at the same moment."""

from __future__ import annotations

import time
from collections.abc import Sequence

import trio

from shovey_trio.bench.figures import Bar, Figure, figure
from shovey_trio.bench.stage import Stage

_PROBE_EVERY = 0.05


async def measure(stage: Stage) -> Sequence[Figure]:
    """Attaches all agents at once, twice: the first time the daemon has also to note what they say of themselves."""
    agents = stage.options.agents
    await stage.swarm.enroll(stage.client, agents)
    took: list[float] = []
    dropped: list[float] = []
    calls: list[float] = []
    cpu: list[float] = []
    peak: list[float] = []
    stalls: list[float] = []
    for _ in range(2):
        await stage.detach()
        with stage.daemon.measuring() as cost:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_probe, stage, calls)
                began = time.perf_counter()
                attached = await stage.swarm.attach(agents)
                await stage.wait_up(agents)
                took.append(time.perf_counter() - began)
                nursery.cancel_scope.cancel(reason="all agents are attached")
        dropped.append(attached.dropped)
        cpu.append(cost.cpu / agents)
        peak.append(cost.peak / 2**20)
        stalls.append(cost.stall)
    name = f"{agents:,} agents attach"
    return [
        figure(name, took, bar=Bar(at=60, stretch=40), simulated=True),
        figure(f"{name}: failed attempts", dropped, unit="", bar=Bar(at=0, of="worst"), simulated=True),
        figure(f"{name}: other calls meanwhile", calls, bar=Bar(at=0.5, of="p99")),
        figure(f"{name}: daemon CPU each", cpu),
        figure(f"{name}: daemon memory, peak", peak, unit="MiB"),
        figure(f"{name}: longest stall", stalls),
    ]


async def _probe(stage: Stage, took: list[float]) -> None:
    while True:
        began = time.perf_counter()
        await stage.client.get_server_info()
        took.append(time.perf_counter() - began)
        await trio.sleep(_PROBE_EVERY)
