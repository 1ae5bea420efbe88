"""``lines``: every agent prints ten short lines a second, and nobody looks. What a chatty fleet costs."""

from __future__ import annotations

import time
from collections.abc import Sequence

from shovey_trio.bench.figures import Bar, Figure, figure
from shovey_trio.bench.simulated_run import Behaviour, Kind
from shovey_trio.bench.stage import Stage, expect
from shovey_trio.v1 import job_pb2

_PER_SECOND = 10


async def measure(stage: Stage) -> Sequence[Figure]:
    """Lets them print for ``seconds`` and looks how late the job ends."""
    options = stage.options
    await stage.attach(options.agents)
    seconds = max(round(options.seconds), 1)
    await stage.swarm.behave({"lines": Behaviour(kind=Kind.LINES, seconds=seconds, per_second=_PER_SECOND)})
    nodes = stage.swarm.names[: options.agents]
    with stage.daemon.measuring() as cost:
        began = time.perf_counter()
        job = await stage.start("lines", nodes)
        ended = await stage.finished(job.id)
        took = time.perf_counter() - began
    expect(ended, job_pb2.RUN_STATE_SUCCEEDED, len(nodes))
    name = f"{options.agents:,} agents, {_PER_SECOND} lines a second each"
    return [
        figure(f"{name}: the job's end is late by", [took - seconds], bar=Bar(at=2.0), simulated=True),
        figure(f"{name}: daemon CPU", [cost.cpu / took * 100], unit="% core", bar=Bar(at=100.0)),
        figure(f"{name}: daemon memory, peak", [cost.peak / 2**20], unit="MiB"),
        figure(f"{name}: longest stall", [cost.stall]),
    ]
