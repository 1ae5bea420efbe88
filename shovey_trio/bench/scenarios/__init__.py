"""The scenarios of ``shovey-trio bench`` by name, in the order in which they are run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from shovey_trio.bench.figures import Figure
from shovey_trio.bench.scenarios import (
    attach,
    cancel,
    cost,
    fanout,
    footprint,
    history,
    idle,
    latency,
    latency_real,
    lines,
    many_jobs,
    membership,
    on_demand,
    output,
    submit,
)
from shovey_trio.bench.stage import Stage
from shovey_trio.shovey.bench import fanout_scenario as legacy
from shovey_trio.shovey.bench import output_scenario as legacy_output

Scenario = Callable[[Stage], Awaitable[Sequence[Figure]]]

SCENARIOS: Final[Mapping[str, tuple[Scenario, str]]] = MappingProxyType(
    {
        "attach": (attach.measure, "all agents connect at once"),
        "idle": (idle.measure, "all agents attached, nothing to do"),
        "fanout": (fanout.measure, "one job on all agents"),
        "cancel": (cancel.measure, "one job on all agents, cancelled while it runs"),
        "latency": (latency.measure, "one job on one simulated agent, the others idle"),
        "latency-real": (latency_real.measure, "one job on one real agent process, the others idle"),
        "submit": (submit.measure, "jobs from 32 clients at once"),
        "many-jobs": (many_jobs.measure, "200 jobs of 5 nodes at once"),
        "output": (output.measure, "100 agents push as fast as they may"),
        "lines": (lines.measure, "all agents print 10 short lines a second"),
        "cost": (cost.measure, "CPU per run against the number of agents"),
        "legacy": (legacy.measure, "one job on emulated old nodes (schob); with --peer, on goiardi too"),
        "legacy-output": (legacy_output.measure, "output of emulated old nodes; with --peer, to goiardi too"),
        "on-demand": (on_demand.measure, "one job on 50 real agents that serf wakes"),
        "membership": (membership.measure, "a serf cluster of 10,000 members, emulated"),
        "footprint": (footprint.measure, "one real agent, in one process and in two parts, with nothing to do"),
        "history": (history.measure, "a store with many finished runs"),
    }
)
