"""One job on emulated old nodes of one server, from the request that starts it to the end of its last run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import trio

from lab.schobs.nodes import OldNode, OldNodes, lost_results, wait_ended
from lab.schobs.servers import OldServer
from shovey_trio.shovey.protocol.wire import ORDER_QUERY

_COMMAND: Final = "report"
_POLL: Final = 0.25
# goiardi takes its time for a thousand nodes; and after the last report of all, a run that has not moved will not.
_REPORTS_DEADLINE: Final = 240.0
_SETTLED: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OldJob:
    """What was measured; durations in seconds.

    Attributes:
        posted: until the request that started the job was answered.
        dispatch: from the first order that the serf agent took to the last.
        ended: from the last order to the last run's end; where results were lost, to the last report's answer.
        orders: queries with orders that serf took.
        refused: raw sizes of queries that serf refused.
        lost: runs that are not in the state that their node has reported, a moment after the last report.
        unanswered: reports that were not answered 200.
        cpu: of the server.
        peak: its largest resident memory, in bytes.
        stall: of its loop, where that is known.
    """

    nodes: int
    posted: float
    dispatch: float
    ended: float
    orders: int
    refused: Sequence[int]
    lost: int
    unanswered: int
    cpu: float
    peak: int
    stall: float


async def run_old_job(server: OldServer, nodes: Sequence[OldNode], *, seconds: float) -> OldJob:
    """Runs a job once.

    Args:
        seconds: how long its command takes on every node.
    """
    async with trio.open_nursery() as nursery:
        at_work = OldNodes(nodes, port=server.port, signing_key=server.signing_key, nursery=nursery, seconds=seconds)
        server.serf.delivered = at_work.deliver
        with server.meter.measuring() as cost:
            began = time.perf_counter()
            job_id = await server.start(_COMMAND, nodes)
            posted = time.perf_counter() - began
            with trio.move_on_after(_REPORTS_DEADLINE):
                await _wait_reports(server, at_work, len(nodes))
            finished, lost = await _settled(server, job_id, nodes)
        sent = [query.at for query in server.serf.queries if query.name == ORDER_QUERY]
        first, last = (min(sent), max(sent)) if sent else (0.0, 0.0)
        nursery.cancel_scope.cancel(reason="the job is measured")
    reported = max(at_work.ended.values(), default=last)
    return OldJob(
        nodes=len(nodes),
        posted=posted,
        dispatch=last - first,
        ended=(reported if lost else finished) - last if sent else 0.0,
        orders=len(sent),
        refused=tuple(server.serf.refused),
        lost=lost,
        unanswered=sum(count for status, count in at_work.answers.items() if status != 200),
        cpu=cost.cpu,
        peak=cost.peak,
        stall=cost.stall,
    )


async def _wait_reports(server: OldServer, at_work: OldNodes, count: int) -> None:
    """Returns when every node has reported, or when none ever will: serf has refused the order."""
    async with trio.open_nursery() as nursery:

        async def watch_refusals() -> None:
            while not server.serf.refused:  # noqa: ASYNC110 - the emulation has no event for it
                await trio.sleep(_POLL)
            nursery.cancel_scope.cancel(reason="serf refused the order")

        nursery.start_soon(watch_refusals)
        await wait_ended(at_work, count)
        nursery.cancel_scope.cancel(reason="every node has reported")


async def _settled(server: OldServer, job_id: str, nodes: Sequence[OldNode]) -> tuple[float, int]:
    """When every run was in its true state, and 0; or after a while without, how many are not."""
    lost, since = len(nodes) + 1, trio.current_time()
    while True:
        job = await server.ask("GET", f"/shovey/jobs/{job_id}")
        now, before = trio.current_time(), lost
        lost = lost_results(nodes, job["nodes"])
        if lost == 0 and job["status"] == "complete":
            return now, 0
        if lost != before:
            since = now
        elif now - since > _SETTLED:
            return now, max(lost, 1)
        await trio.sleep(_POLL)
