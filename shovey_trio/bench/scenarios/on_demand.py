"""``on-demand``: one job on real agents that are not attached, each beside a real serf agent that wakes it.

As on as many machines: a serf agent and a job agent for each node, all processes of their own, nothing simulated.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from shovey_trio.bench.figures import Bar, Figure, figure
from shovey_trio.bench.footprint_meter import cpu_seconds, process_tree
from shovey_trio.bench.stage import Stage, WrongResult, expect
from shovey_trio.demo.fleet import Fleet, NodeSpec, open_fleet
from shovey_trio.demo.operator import request
from shovey_trio.demo.serf_agents import SerfAgentFailed
from shovey_trio.rpc.client.client import ShoveyClient
from shovey_trio.v1 import job_pb2

_NODES: Final = 50
_POLL: Final = 0.05
# How long an agent stays after a job; each round waits for the last one to leave.
_LINGER: Final = "0.2s"
_SETTLE: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Round:
    """Seconds from StartJob to the last command's start and to the job's end, as a watcher sees them; CPU seconds."""

    last_start: float
    done: float
    daemon_cpu: float
    agents_cpu: float
    serf_cpu: float


async def measure(stage: Stage) -> Sequence[Figure]:
    """Runs ``rounds`` jobs ``true``, each once all agents have left.

    Raises:
        WrongResult: serf is not installed, or a run has not succeeded.
    """
    options = stage.options
    count = min(_NODES, options.agents)
    async with _open_nodes(stage.fleet.directory / "on-demand", count) as fleet, fleet.open_client() as client:
        rounds = [await _measure_round(fleet, client) for _ in range(options.rounds)]
    name = f"job `true` on {count} real agents on demand, with serf"
    return [
        figure(f"{name}: last start", [each.last_start for each in rounds], bar=Bar(at=2.0, stretch=1.0)),
        figure(f"{name}: done", [each.done for each in rounds], bar=Bar(at=4.0)),
        figure(f"{name}: daemon CPU each", [each.daemon_cpu / count for each in rounds]),
        figure(f"{name}: agent CPU each", [each.agents_cpu / count for each in rounds]),
        figure(f"{name}: serf CPU each", [each.serf_cpu / count for each in rounds]),
    ]


@asynccontextmanager
async def _open_nodes(directory: Path, count: int) -> AsyncIterator[Fleet]:
    await trio.Path(directory).mkdir()
    settings = {"reconnect.linger": _LINGER}
    nodes = [
        NodeSpec(name=f"node-{number:02}", link="on-demand", whitelist={"true": "true"}, settings=settings)
        for number in range(count)
    ]
    controller = {"log.format": "json", "limits.enroll_per_minute": "1000000"}
    try:
        async with open_fleet(directory, nodes, serf=True, settings=controller) as fleet:
            yield fleet
    except* SerfAgentFailed as failed:
        raise WrongResult(str(failed.exceptions[0])) from None


async def _measure_round(fleet: Fleet, client: ShoveyClient) -> _Round:
    await _quiet(fleet, client)
    assert fleet.controller.pid is not None
    daemon = [fleet.controller.pid]
    agents = [pid for node in fleet.nodes.values() if node.agent.pid for pid in process_tree(node.agent.pid)]
    serf = [node.serf.pid for node in fleet.nodes.values() if node.serf and node.serf.pid]
    before = [cpu_seconds(pids) for pids in (daemon, agents, serf)]
    started: dict[str, float] = {}
    began = time.perf_counter()
    job_id = (await client.start_job(request("true"))).job.id
    async with client.watch_job(job_id) as watch:
        async for event in watch:
            for run in [*event.snapshot.runs, event.run_changed.run]:
                if run.HasField("started_at"):
                    started.setdefault(run.node, time.perf_counter())
    done = time.perf_counter() - began
    after = [cpu_seconds(pids) for pids in (daemon, agents, serf)]
    expect(await client.get_job(job_id), job_pb2.RUN_STATE_SUCCEEDED, len(fleet.nodes))
    used = [later - earlier for earlier, later in zip(before, after, strict=True)]
    last = max(started.values()) - began
    return _Round(last_start=last, done=done, daemon_cpu=used[0], agents_cpu=used[1], serf_cpu=used[2])


async def _quiet(fleet: Fleet, client: ShoveyClient) -> None:
    """Returns once all agents have left, and gossip has recovered from what it may have missed on a busy machine."""
    while True:
        if not (await client.get_server_info()).nodes_attached:
            break
        await trio.sleep(_POLL)
    assert fleet.serf is not None
    await fleet.serf.wait_alive([fleet.serf.name, *(node.serf.name for node in fleet.nodes.values() if node.serf)])
    await trio.sleep(_SETTLE)
