"""``legacy-output``: old nodes push output of 1 KiB pieces through the HTTP interface, all at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from lab.schobs.chunks import ChunkRate, push_chunks
from lab.schobs.nodes import OldNode, make_nodes
from lab.schobs.servers import NO_LIMIT, OldServer, open_goiardi_server, open_own_server
from shovey_trio.bench.figures import Bar, Figure, figure
from shovey_trio.bench.stage import Stage

# As many connections, and what each of them pushes. Each piece is signed beforehand, which takes 1 ms.
_NODES: Final = 32
_PIECES: Final = 5_000


async def measure(stage: Stage) -> Sequence[Figure]:
    """Measures ``rounds`` times, after once to warm up."""
    nodes = make_nodes(min(stage.options.agents, _NODES))
    directory = stage.fleet.directory
    async with open_own_server(directory / "legacy", nodes) as server:
        own = await _rounds(server, nodes, stage.options.rounds)
    figures = _figures("", len(nodes), own)
    if not stage.options.peer:
        return figures
    async with open_goiardi_server(directory / "goiardi", nodes) as server:
        # Its one query must pass, or there is nothing to measure.
        server.serf.query_size_limit = NO_LIMIT
        peer = await _rounds(server, nodes, stage.options.rounds)
    figures += _figures("goiardi, in memory, ", len(nodes), peer)
    faster = [one.per_second / other.per_second for one, other in zip(own, peer, strict=True)]
    cheaper = [other.cpu_each / one.cpu_each for one, other in zip(own, peer, strict=True) if one.cpu]
    name = "shovey-trio against goiardi, 1 KiB pieces"
    figures.append(figure(f"{name}: per second", faster, unit="×", bar=Bar(at=1, at_least=True), simulated=True))
    if cheaper:
        figures.append(figure(f"{name}: per CPU", cheaper, unit="×", bar=Bar(at=1, at_least=True), simulated=True))
    return figures


async def _rounds(server: OldServer, nodes: Sequence[OldNode], rounds: int) -> list[ChunkRate]:
    each = max(_PIECES * rounds // (rounds + 1) // len(nodes), 1) if rounds > 1 else 20
    await push_chunks(server, nodes, each=min(each, 20))
    return [await push_chunks(server, nodes, each=each) for _ in range(rounds)]


def _figures(who: str, nodes: int, rates: Sequence[ChunkRate]) -> list[Figure]:
    name = f"{who}1 KiB pieces of output from {nodes} emulated old nodes"
    return [
        figure(f"{name}: per second", [each.per_second for each in rates], unit="1/s", simulated=True),
        figure(f"{name}: server CPU each", [each.cpu_each for each in rates], simulated=True),
        figure(f"{name}: server memory, peak", [each.peak / 2**20 for each in rates], unit="MiB", simulated=True),
    ]
