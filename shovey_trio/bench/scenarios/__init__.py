"""The scenarios of ``shovey-trio bench`` by name, in the order in which they are run; imported when they are."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from types import MappingProxyType
from typing import Final

from shovey_trio.bench.figures import Figure
from shovey_trio.bench.stage import Stage

Scenario = Callable[[Stage], Awaitable[Sequence[Figure]]]

# Name → module, and what it measures.
SCENARIOS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "attach": ("shovey_trio.bench.scenarios.attach", "all agents connect at once"),
        "idle": ("shovey_trio.bench.scenarios.idle", "all agents attached, nothing to do"),
        "fanout": ("shovey_trio.bench.scenarios.fanout", "one job on all agents"),
        "cancel": ("shovey_trio.bench.scenarios.cancel", "one job on all agents, cancelled while it runs"),
        "latency": ("shovey_trio.bench.scenarios.latency", "one job on one simulated agent, the others idle"),
        "latency-real": (
            "shovey_trio.bench.scenarios.latency_real",
            "one job on one real agent process, the others idle",
        ),
        "submit": ("shovey_trio.bench.scenarios.submit", "jobs from 32 clients at once"),
        "many-jobs": ("shovey_trio.bench.scenarios.many_jobs", "200 jobs of 5 nodes at once"),
        "output": ("shovey_trio.bench.scenarios.output", "100 agents push as fast as they may"),
        "lines": ("shovey_trio.bench.scenarios.lines", "all agents print 10 short lines a second"),
        "cost": ("shovey_trio.bench.scenarios.cost", "CPU per run against the number of agents"),
        "legacy": (
            "lab.schobs.fanout",
            "one job on emulated old nodes (schob); with --peer, on goiardi too",
        ),
        "legacy-output": (
            "lab.schobs.output",
            "output of emulated old nodes; with --peer, to goiardi too",
        ),
        "on-demand": ("shovey_trio.bench.scenarios.on_demand", "one job on 50 real agents that serf wakes"),
        "membership": ("lab.serf_members", "a serf cluster of 10,000 members, emulated"),
        "footprint": (
            "shovey_trio.bench.scenarios.footprint",
            "one real agent, in one process and in two parts, with nothing to do",
        ),
        "history": ("shovey_trio.bench.scenarios.history", "a store with many finished runs"),
    }
)
# Beside the tests, where the emulated serf cluster, old nodes and other servers are.
LABORATORY: Final = "lab"
# Other servers that scenarios may measure beside this one: name of the package → module that looks for it.
PEERS: Final[Mapping[str, str]] = MappingProxyType({"goiardi": "lab.schobs.servers"})


def load_scenario(name: str) -> Scenario:
    """The ``measure`` of the scenario of that name."""
    measure: Scenario = import_module(SCENARIOS[name][0]).measure
    return measure


def is_here(name: str) -> bool:
    """Whether the scenario can be imported: those of the laboratory are in a checkout alone."""
    return SCENARIOS[name][0].partition(".")[0] != LABORATORY or find_spec(LABORATORY) is not None


def has_peer(name: str) -> bool:
    """Whether another server is installed, and there is a laboratory to measure it."""
    return find_spec(LABORATORY) is not None and bool(import_module(PEERS[name]).is_installed())
