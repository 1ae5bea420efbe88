"""Output of old nodes: pieces of 1 KiB through the HTTP interface, from many connections at once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import trio

from lab.schobs.nodes import FLOOD, OldNode, OldNodes, wait_ended
from lab.schobs.servers import OldServer
from shovey_trio.bench.stage import WrongResult

_POLL: Final = 0.01
_DEADLINE: Final = 120.0
_OK: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkRate:
    """What was measured; durations in seconds, ``cpu`` of the server."""

    chunks: int
    seconds: float
    cpu: float
    peak: int

    @property
    def per_second(self) -> float:
        return self.chunks / self.seconds

    @property
    def cpu_each(self) -> float:
        return self.cpu / self.chunks


async def push_chunks(server: OldServer, nodes: Sequence[OldNode], *, each: int) -> ChunkRate:
    """Has every node push ``each`` pieces, signed before the clock starts, one after the other on its own connection.

    Raises:
        WrongResult: a piece was not answered 200, or nothing came to an end.
    """
    with trio.move_on_after(_DEADLINE):
        async with trio.open_nursery() as nursery:
            at_work = OldNodes(nodes, port=server.port, signing_key=server.signing_key, nursery=nursery, chunks=each)
            server.serf.delivered = at_work.deliver
            await server.start(FLOOD, nodes)
            while at_work.ready < len(nodes):  # noqa: ASYNC110 - an event per node would be part of the load
                await trio.sleep(_POLL)
            with server.meter.measuring() as cost:
                began = time.perf_counter()
                at_work.go.set()
                while at_work.pushed < len(nodes):  # noqa: ASYNC110 - as above
                    await trio.sleep(_POLL)
                seconds = time.perf_counter() - began
            await wait_ended(at_work, len(nodes))
            nursery.cancel_scope.cancel(reason="the output is measured")
        wrong = {status: count for status, count in at_work.answers.items() if status != _OK}
        if wrong:
            raise WrongResult(f"{server.name} answered reports with {wrong}")
        return ChunkRate(chunks=each * len(nodes), seconds=seconds, cpu=cost.cpu, peak=cost.peak)
    raise WrongResult(f"{server.name} does not take the output of {len(nodes)} nodes in {_DEADLINE:.0f} s")
