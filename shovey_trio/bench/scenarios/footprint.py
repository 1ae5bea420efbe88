"""``footprint``: what the agent takes of a node while nothing happens, and how long it takes to start.

Real agent processes, in one part and in two; both parts of the latter are this account's, which changes nothing in what
they take.
"""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Sequence
from typing import Final

import trio

from shovey_trio.bench.figures import Bar, Figure, figure
from shovey_trio.bench.footprint_meter import Memory, cpu_seconds, memory, process_tree
from shovey_trio.bench.stage import Stage
from shovey_trio.demo.fleet import FleetNode, NodeSpec
from shovey_trio.demo.processes import ManagedProcess, ProcessFailed

_MB: Final = 1e6
_POLL: Final = 0.002
_START_DEADLINE: Final = 60.0
# What a start leaves to be done is done by then: threads that end, what a first collection of garbage frees.
_SETTLE: Final = 2.0
_WHITELIST: Final = {"true": "true"}


async def measure(stage: Stage) -> Sequence[Figure]:
    """Starts either form ``rounds`` times and watches the last for ``seconds``."""
    account = pwd.getpwuid(os.geteuid()).pw_name
    whole = await stage.fleet.add_node(NodeSpec(name="whole", whitelist=_WHITELIST), serf=None)
    split = await stage.fleet.add_node(NodeSpec(name="split", whitelist=_WHITELIST, split=account), serf=None)
    return [
        *await _measure_node(stage, whole, "agent in one process"),
        *await _measure_node(stage, split, "agent in two parts"),
    ]


async def _measure_node(stage: Stage, node: FleetNode, name: str) -> list[Figure]:
    parts = [node.agent] if node.launcher is None else [node.launcher, node.agent]
    ready: list[float] = []
    attached: list[float] = []
    for left in reversed(range(stage.options.rounds)):
        began = time.perf_counter()
        if node.launcher is not None:
            await _start(node.launcher, "launcher.ready")
        ready.append(await _start(node.agent, "agent.ready", since=began))
        attached.append(await _heard(node.agent, "controller.attached", since=began))
        if left:
            for part in reversed(parts):
                await part.stop()
    await _run_once(stage, node)
    await trio.sleep(_SETTLE)
    pids = [pid for part in parts if part.pid is not None for pid in process_tree(part.pid)]
    before = cpu_seconds(pids)
    await trio.sleep(stage.options.seconds)
    cpu = cpu_seconds(pids) - before
    found = memory(pids)
    for part in reversed(parts):
        await part.stop()
    return [
        figure(f"{name}: start to ready", ready, bar=Bar(at=1.5)),
        figure(f"{name}: start to attached", attached),
        *_memory_figures(f"{name}, idle", found),
        figure(f"{name}, idle: CPU", [cpu / stage.options.seconds * 100], unit="% core", bar=Bar(at=0.2)),
    ]


def _memory_figures(name: str, found: Memory) -> list[Figure]:
    return [
        figure(f"{name}: memory", [found.once / _MB], unit="MB", bar=Bar(at=60, stretch=40)),
        figure(f"{name}: RSS, shared pages once for each process", [found.resident / _MB], unit="MB"),
        figure(f"{name}: PSS", [found.proportional / _MB], unit="MB"),
        figure(f"{name}: private", [found.private / _MB], unit="MB"),
    ]


async def _run_once(stage: Stage, node: FleetNode) -> None:
    """An agent that has never run anything would flatter itself."""
    await stage.run_job("true", [node.spec.name])


async def _start(process: ManagedProcess, event: str, *, since: float | None = None) -> float:
    began = time.perf_counter() if since is None else since
    process.log.unlink(missing_ok=True)  # what the start before this one said
    await process.start()
    return await _heard(process, event, since=began)


async def _heard(process: ManagedProcess, event: str, *, since: float) -> float:
    """Seconds since ``since`` until the process, started last, logs ``event``.

    Raises:
        ProcessFailed: it has ended instead, or says nothing of it within a minute.
    """
    with trio.move_on_after(_START_DEADLINE):
        while event not in process.log.read_text("utf-8", "replace"):
            process.check()
            await trio.sleep(_POLL)
        return time.perf_counter() - since
    raise ProcessFailed(f"no {event} in a minute:\n{process.tail()}")
