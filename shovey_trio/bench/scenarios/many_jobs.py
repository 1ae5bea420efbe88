"""``many-jobs``: two hundred small jobs submitted at once; all of them complete, none starves."""

from __future__ import annotations

import time
from collections.abc import Sequence

import trio

from shovey_trio.bench.daemon_meter import cost_figures
from shovey_trio.bench.figures import Bar, Figure, figure
from shovey_trio.bench.stage import Stage, expect
from shovey_trio.v1 import job_pb2

_JOBS = 200
_NODES = 5


async def measure(stage: Stage) -> Sequence[Figure]:
    """Submits them all, ``rounds`` times."""
    options = stage.options
    await stage.attach(max(options.agents, _NODES))
    took: list[float] = []
    each: list[float] = []
    with stage.daemon.measuring() as cost:
        for _ in range(options.rounds):
            began = time.perf_counter()
            async with trio.open_nursery() as nursery:
                for number in range(_JOBS):
                    nursery.start_soon(_one, stage, number, each)
            took.append(time.perf_counter() - began)
    name = f"{_JOBS} jobs × {_NODES} nodes at once"
    return [
        figure(f"{name}: all complete", took, bar=Bar(at=5.0, stretch=2.0), simulated=True),
        figure(f"{name}: each", each, bar=Bar(at=5.0, of="worst"), simulated=True),
        *cost_figures(name, cost, each="run", count=len(each) * _NODES),
    ]


async def _one(stage: Stage, number: int, each: list[float]) -> None:
    names = stage.swarm.names
    nodes = {names[(number * _NODES + offset) % len(names)] for offset in range(_NODES)}
    job = await stage.start("true", sorted(nodes))
    ended = await stage.finished(job.id)
    expect(ended, job_pb2.RUN_STATE_SUCCEEDED, len(nodes))
    each.append((ended.finished_at.ToNanoseconds() - ended.created_at.ToNanoseconds()) / 1e9)
