"""``legacy``: one job on emulated old nodes (schob); with ``--peer goiardi`` the same on goiardi, side by side.

goiardi puts all nodes of a job into one query, which serf refuses above some twenty names: then no node ever hears of
the job. That is measured first, as it is. For a comparison of the two servers goiardi is then given a serf that lets
its query pass, whatever its size: what no real one does. Ours has serf's limit always.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from lab.schobs.job import OldJob, run_old_job
from lab.schobs.nodes import OldNode, make_nodes
from lab.schobs.servers import NO_LIMIT, open_goiardi_server, open_own_server
from shovey_trio.bench.figures import Bar, Figure, figure
from shovey_trio.bench.stage import Stage

# How long the command takes on every node.
_SECONDS: Final = 1.0
_MIB: Final = 2**20


async def measure(stage: Stage) -> Sequence[Figure]:
    """Runs the job once on each server: a fresh one each, nodes registered and up."""
    nodes = make_nodes(stage.options.agents)
    directory = stage.fleet.directory
    async with open_own_server(directory / "legacy", nodes) as server:
        own = await run_old_job(server, nodes, seconds=_SECONDS)
    figures = _figures("", own, bar=True)
    if not stage.options.peer:
        return figures
    async with open_goiardi_server(directory / "goiardi", nodes) as server:
        peer = await run_old_job(server, nodes, seconds=_SECONDS)
        figures += _figures("goiardi, ", peer)
        if peer.refused:
            server.serf.query_size_limit = NO_LIMIT
            server.serf.refused.clear()
            peer = await run_old_job(server, nodes, seconds=_SECONDS)
            figures += _figures("goiardi with a serf that has no size limit, ", peer)
    return [*figures, *_ratios(nodes, own, peer)]


def _figures(who: str, job: OldJob, *, bar: bool = False) -> list[Figure]:
    name = f"{who}job on {job.nodes:,} emulated old nodes"
    found = [
        figure(
            f"{name}: lost results", [job.lost], unit="", bar=Bar(at=0, of="worst") if bar else None, simulated=True
        ),
        figure(f"{name}: reports not taken", [job.unanswered], unit="", simulated=True),
    ]
    if job.refused:
        # Nothing was dispatched, and nothing else can be said of it.
        size = figure(f"{name}: bytes of its query, which serf refuses", job.refused, unit="B", simulated=True)
        return [*found, size]
    return [
        *found,
        figure(f"{name}: queries", [job.orders], unit="", simulated=True),
        figure(f"{name}: start answered", [job.posted], simulated=True),
        figure(f"{name}: first to last order", [job.dispatch], simulated=True),
        figure(f"{name}: last order to last end", [job.ended], simulated=True),
        figure(f"{name}: server CPU", [job.cpu], unit="CPU s", simulated=True),
        figure(f"{name}: server memory, peak", [job.peak / _MIB], unit="MiB", simulated=True),
    ]


def _ratios(nodes: Sequence[OldNode], own: OldJob, peer: OldJob) -> list[Figure]:
    large = len(nodes) >= 1_000
    name = f"goiardi against shovey-trio, {len(nodes):,} emulated old nodes"
    figures = []
    if own.cpu:
        bar = Bar(at=10, at_least=True) if large else None
        figures.append(figure(f"{name}: CPU", [peer.cpu / own.cpu], unit="×", bar=bar, simulated=True))
    if own.ended > 0:
        bar = Bar(at=5, at_least=True) if large else None
        ratio = [peer.ended / own.ended]
        figures.append(figure(f"{name}: last order to last end", ratio, unit="×", bar=bar, simulated=True))
    return figures
