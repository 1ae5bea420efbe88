"""Doorbells: signed serf queries that wake this agent when an order waits for it.

A doorbell decides nothing; whoever forges one makes agents call their controller, spread over seconds, and learn
that there is nothing. Still it is verified first, because even that is worth refusing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from shovey_trio.core.errors import ShoveyError
from shovey_trio.core.serf.doorbell import DoorbellRefused, attach_delay, is_for, short_key_id, verify
from shovey_trio.core.serf.doorbell_plan import SPREAD_PER_TARGET_MS
from shovey_trio.core.serf.wire import AGENT_START_EVENT, CONTROLLER_START_EVENT, DOORBELL_QUERY
from shovey_trio.core.trust.key_sets import PublicKey
from shovey_trio.core.trust.orders import MAX_CLOCK_SKEW
from shovey_trio.serf.link import ReceivedQuery, SerfLink

_log = structlog.get_logger(__name__)
_AGAIN = 5.0


def foreign_name(found: str, *, organization: str, node: str) -> str:
    """What is wrong with the name of the serf agent beside this one; empty when it is this node's."""
    wanted = f"{organization}:{node}"
    return "" if found == wanted else f"the serf agent is called {found}, not {wanted}: no doorbell reaches this node"


class DoorbellListener:
    """Listens on the node's serf agent.

    Args:
        link: to the serf agent; its ``run`` is started by ``serve``.
        organization, node: this agent's names.
        keys: the controller's signing keys that are believed at a time (unix seconds).
        wake: called with the job's id (empty: unknown) when the agent should call its controller.
    """

    def __init__(
        self,
        *,
        link: SerfLink,
        organization: str,
        node: str,
        keys: Callable[[float], Sequence[PublicKey]],
        wake: Callable[[str], None],
    ) -> None:
        self._link = link
        self._organization = organization
        self._node = node
        self._keys = keys
        self._wake = wake
        # Jobs whose moment to call has not come: a doorbell that is heard again meanwhile adds nothing.
        self._coming: set[str] = set()

    async def serve(self) -> None:
        """Listens until cancelled; an absent or restarted serf agent is waited for."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._link.run)
            nursery.start_soon(self._announce)
            nursery.start_soon(self._notice_reconnects)
            async for event in self._link.events:
                if isinstance(event, ReceivedQuery):
                    if event.name == DOORBELL_QUERY:
                        self._rung(nursery, event.payload)
                elif event.name == CONTROLLER_START_EVENT:
                    # The whole ring hears it at the same moment.
                    self._wake_soon(nursery, "", self._link.snapshot().members * SPREAD_PER_TARGET_MS)

    def _rung(self, nursery: trio.Nursery, payload: bytes) -> None:
        keys = {
            short_key_id(key): key
            for key in (Ed25519PublicKey.from_public_bytes(known.public_bytes) for known in self._keys(time.time()))
        }
        try:
            doorbell = verify(payload, keys=keys, organization=self._organization, now=time.time(), skew=MAX_CLOCK_SKEW)
        except DoorbellRefused as error:
            # With whose clock it was judged, should it be that: the controller's is not known without a stream.
            _log.warning("doorbell.refused", reason=error.refusal.value, local_time=round(time.time(), 1))
            return
        name = f"{self._organization}:{self._node}"
        if is_for(doorbell, name):
            self._wake_soon(nursery, doorbell.job_id, doorbell.spread_ms)

    def _wake_soon(self, nursery: trio.Nursery, job_id: str, spread_ms: int) -> None:
        if job_id not in self._coming:
            self._coming.add(job_id)
            nursery.start_soon(self._wake_later, job_id, attach_delay(self._node, job_id, spread_ms))

    async def _wake_later(self, job_id: str, delay: float) -> None:
        await trio.sleep(delay)
        self._coming.discard(job_id)
        self._wake(job_id)

    async def _notice_reconnects(self) -> None:
        """Queries that were sent while serf was away never come again: ask the controller instead."""
        connects = await self._link.wait_connected()
        while True:
            self._check_name()
            connects = await self._link.wait_connected(after=connects)
            self._wake("")

    def _check_name(self) -> None:
        found = self._link.snapshot().node_name or ""
        if wrong := foreign_name(found, organization=self._organization, node=self._node):
            _log.error("serf.foreign_name", error=wrong)

    async def _announce(self) -> None:
        while True:
            try:
                await self._link.announce(AGENT_START_EVENT, self._node.encode())
            except ShoveyError as error:
                _log.warning("serf.announce_failed", error=error.message)
                await trio.sleep(_AGAIN)
            else:
                return
