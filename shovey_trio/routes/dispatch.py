"""Reaching nodes: the one dispatcher that the runs of all jobs share.

Gossip is paid per query, not per node (reference: serf.md, sections 3 and 5), so a run never talks to serf. It asks
the dispatcher for the node's stream; while there is none, the dispatcher rings the node's doorbell together with
every other node of the same job that asked within ``ring_linger``.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import structlog
import trio

from shovey_trio.core.errors import SerfUnavailable
from shovey_trio.nursery.links import Links
from shovey_trio.nursery.ports import AgentLink, Doorbell
from shovey_trio.nursery.route import DOORBELL, STREAM
from shovey_trio.nursery.settings import Timing

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """A node's open stream, and what it took to get it."""

    link: AgentLink
    way: str


class Dispatcher:
    """Finds a way to nodes. ``serve`` must run for doorbells to ring."""

    def __init__(self, *, links: Links, doorbell: Doorbell, timing: Timing) -> None:
        self._links = links
        self._doorbell = doorbell
        self._timing = timing
        # job → nodes to ring; bounded by the number of live runs
        self._wanted: dict[tuple[str, str], set[str]] = {}
        self._work = trio.Event()

    async def reach(self, *, organization: str, job_id: str, node: str) -> Reached:
        """Waits for the node's stream, ringing its doorbell up to ``order_attempts`` times meanwhile.

        Never gives up by itself: the caller's deadline decides. Cancelling it leaves nothing behind but a ring that
        may still go out, which is harmless (the woken agent finds no order).
        """
        link = self._links.get(organization, node)
        if link is not None:
            await trio.lowlevel.checkpoint()
            return Reached(link=link, way=STREAM)
        rung = False
        pause = self._timing.ring_pause
        for attempt in range(self._timing.order_attempts):
            if self._doorbell.member_status(organization, node) == "alive":
                rung = True
                self._wanted.setdefault((organization, job_id), set()).add(node)
                self._work.set()
            with trio.move_on_after(pause * _jitter(job_id, attempt)):
                return await self._arrived(organization, node, rung=rung)
            pause *= 2
        return await self._arrived(organization, node, rung=rung)

    async def serve(self) -> None:
        """Rings doorbells until cancelled. Serf being away costs nothing but time: rings wait and go out later."""
        while True:
            await self._work.wait()
            self._work = trio.Event()
            await trio.sleep(self._timing.ring_linger)
            wanted, self._wanted = self._wanted, {}
            for (organization, job_id), nodes in wanted.items():
                still_away = sorted(node for node in nodes if self._links.get(organization, node) is None)
                if still_away:
                    await self._ring(organization, job_id, still_away)

    async def _ring(self, organization: str, job_id: str, nodes: list[str]) -> None:
        try:
            await self._doorbell.ring(organization=organization, job_id=job_id, nodes=nodes)
        except SerfUnavailable as error:
            # Every waiting run asks again after its pause; by then serf may be back.
            _log.warning("doorbell.failed", job_id=job_id, nodes=len(nodes), error=str(error))

    async def _arrived(self, organization: str, node: str, *, rung: bool) -> Reached:
        link = await self._links.wait_attached(organization, node)
        if rung:
            self._doorbell.heard(organization, node)
        return Reached(link=link, way=DOORBELL if rung else STREAM)


def _jitter(job_id: str, attempt: int) -> float:
    """1.0 to 1.5, another for every job, the same for all of its nodes: they are rung again together, by one query."""
    return 1.0 + zlib.crc32(f"{job_id}/{attempt}".encode()) / 2**33
