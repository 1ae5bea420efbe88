"""Which nodes are up, since when and why – and telling runs when their node is not.

* attached: up while the stream is open; down ``stream_lost_after`` after it broke. Serf alive does not help it: the
  serf agent answering is not the job agent.
* on demand: up while serf says alive and the agent was heard within ``on_demand_fresh``; down at once when serf
  says otherwise.

A restart of the controller is, to presence, a moment in which every stream broke.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog
import trio

from shovey_trio.core.events import NodeSilent
from shovey_trio.core.model import LinkMode, Node, Presence
from shovey_trio.nursery.handles import RunHandle
from shovey_trio.nursery.links import Links, NodeKey
from shovey_trio.nursery.persist import until_stored
from shovey_trio.nursery.ports import AgentLink, Clock, Doorbell
from shovey_trio.nursery.registry import NodeRegistry
from shovey_trio.nursery.settings import Timing

_log = structlog.get_logger(__name__)
# How often due checks are looked for: a node is marked down at most this much late.
_TICK = 0.5


class NodePresence:
    """Keeps every node's presence true. ``serve`` and ``serve_members`` must run."""

    def __init__(
        self,
        *,
        registry: NodeRegistry,
        links: Links,
        doorbell: Doorbell,
        clock: Clock,
        timing: Timing,
        runs_of_node: Callable[[str, str], list[RunHandle]],
    ) -> None:
        self._registry = registry
        self._links = links
        self._doorbell = doorbell
        self._clock = clock
        self._timing = timing
        self._runs_of_node = runs_of_node
        # node → (when to look at it, since when it is silent); one entry per node at most
        self._due: dict[NodeKey, tuple[float, float]] = {}
        self._wake = trio.Event()

    def begin(self) -> None:
        """Gives every node that was up at the last stop the usual time to come back."""
        now = self._clock.now()
        for node in self._registry.all():
            if node.presence is Presence.UP:
                self._look_later(node, now, since=now)

    async def attached(self, link: AgentLink) -> None:
        """Notes that a node's stream is open."""
        now = self._clock.now()
        self._due.pop((link.organization, link.node), None)
        self._registry.saw(link.organization, link.node, now)
        await self._set(link.organization, link.node, Presence.UP, "attached", now)

    def detached(self, link: AgentLink, *, asked: bool) -> None:
        """Notes that a node's stream is gone; ``asked``: an on-demand agent that took its leave."""
        now = self._clock.now()
        self._registry.saw(link.organization, link.node, now)
        node = self._registry.get(link.organization, link.node)
        if node is None:
            return
        if asked and link.mode is LinkMode.ON_DEMAND:
            self._look_at((node.organization, node.name), now + self._timing.on_demand_fresh, since=now)
        else:
            self._look_at((node.organization, node.name), now + self._timing.stream_lost_after, since=now)

    async def serve(self) -> None:
        """Marks nodes down when their time is over; until cancelled."""
        while True:
            if not self._due:
                self._wake = trio.Event()
                await self._wake.wait()
            await trio.sleep(_TICK)
            now = self._clock.now()
            for key, (at, since) in list(self._due.items()):
                if at <= now and self._due.get(key) == (at, since):
                    del self._due[key]
                    await self._silent(key, since)

    async def serve_members(self) -> None:
        """Follows serf's membership for on-demand nodes; until cancelled."""
        async for change in self._doorbell.changes():
            node = self._registry.get(change.organization, change.node)
            if node is None or node.link is not LinkMode.ON_DEMAND or self._links.get(*_key(node)) is not None:
                continue
            now = self._clock.now()
            if change.status != "alive":
                if node.presence is Presence.UP:
                    self._due.pop(_key(node), None)
                    await self._down(_key(node), f"serf_{change.status}", now)
            elif node.presence is Presence.DOWN and node.presence_reason.startswith("serf_") and self._is_fresh(node):
                await self._set(node.organization, node.name, Presence.UP, "serf_alive", now)
                self._look_later(node, now, since=now)

    def _is_fresh(self, node: Node) -> bool:
        return node.last_seen_at is not None and node.last_seen_at + self._timing.on_demand_fresh > self._clock.now()

    def _look_later(self, node: Node, now: float, *, since: float) -> None:
        patience = self._timing.on_demand_fresh if node.link is LinkMode.ON_DEMAND else self._timing.stream_lost_after
        self._look_at(_key(node), now + patience, since=since)

    def _look_at(self, key: NodeKey, at: float, *, since: float) -> None:
        self._due[key] = (at, since)
        self._wake.set()

    async def _silent(self, key: NodeKey, since: float) -> None:
        if self._links.get(*key) is not None:
            return
        node = self._registry.get(*key)
        if node is not None:
            await self._down(key, "stale" if node.link is LinkMode.ON_DEMAND else "stream_lost", since)

    async def _down(self, key: NodeKey, reason: str, since: float) -> None:
        await self._set(*key, Presence.DOWN, reason, since)
        for run in self._runs_of_node(*key):
            await run.post(NodeSilent(since=since, reason=reason))

    async def _set(self, organization: str, name: str, presence: Presence, reason: str, since: float) -> None:
        async def write() -> None:
            await self._registry.set_presence(organization, name, presence=presence, reason=reason, since=since)

        await until_stored(write, longest_pause=self._timing.store_retry)
        _log.info("node.presence", node=name, presence=presence.value, reason=reason)


def _key(node: Node) -> NodeKey:
    return node.organization, node.name
