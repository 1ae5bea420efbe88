"""Which nodes are up, since when and why – and telling runs when their node is not.

* attached: up while the stream is open; down ``stream_lost_after`` after it broke. Serf alive does not help it: the
  serf agent answering is not the job agent.
* on demand: up while serf says alive and the agent was heard within ``on_demand_fresh``; down when serf says
  otherwise. While it has runs its stream is open, so for these its broken stream counts as an attached one's.

A restart of the controller is, to presence, a moment in which every stream broke and every node had just been heard.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from shovey_trio.core.jobs.events import NodeSilent
from shovey_trio.core.jobs.model import LinkMode, Node, Presence
from shovey_trio.nursery.handles import RunHandle
from shovey_trio.nursery.links import Links, NodeKey
from shovey_trio.nursery.ports import AgentLink, Doorbell, NurseryClock
from shovey_trio.nursery.registry import NodeRegistry
from shovey_trio.nursery.settings import Timing

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
        clock: NurseryClock,
        timing: Timing,
        runs_of_node: Callable[[str, str], list[RunHandle]],
    ) -> None:
        self._registry = registry
        self._links = links
        self._doorbell = doorbell
        self._clock = clock
        self._timing = timing
        self._runs_of_node = runs_of_node
        # node → (when to look at it, since when it is silent) on trio's clock; one entry per node at most
        self._due: dict[NodeKey, tuple[float, float]] = {}
        self._wake = trio.Event()
        self._began = trio.current_time()
        self._held = False

    def begin(self) -> None:
        """Gives every node the usual time to come back, whatever it was at the last stop: runs may depend on it."""
        self._began = trio.current_time()
        for node in self._registry.all():
            if node.kind is not None:
                continue  # it has no stream to come back on
            self._look_at(_key(node), self._began + self._timing.stream_lost_after, since=self._began)

    def hold(self) -> None:
        """Marks nobody down from now on for the loss of a stream: the controller stops, and closes them all itself.

        The next start gives every node the usual time to come back.
        """
        self._held = True
        self._due.clear()

    async def attached(self, link: AgentLink) -> None:
        """Notes that a node's stream is open."""
        now = self._clock.now()
        self._due.pop((link.organization, link.node), None)
        self._registry.saw(link.organization, link.node, now)
        await self._set((link.organization, link.node), Presence.UP, "attached", now)

    def detached(self, link: AgentLink, *, asked: bool) -> None:
        """Notes that a node's stream is gone; ``asked``: an on-demand agent that took its leave."""
        self._registry.saw(link.organization, link.node, self._clock.now())
        if self._registry.get(link.organization, link.node) is None:
            return
        leave = asked and link.mode is LinkMode.ON_DEMAND
        patience = self._timing.on_demand_fresh if leave else self._timing.stream_lost_after
        now = trio.current_time()
        self._look_at((link.organization, link.node), now + patience, since=now)

    async def serve(self) -> None:
        """Marks nodes down when their time is over; until cancelled."""
        while True:
            if not self._due:
                self._wake = trio.Event()
                await self._wake.wait()
            await trio.sleep(_TICK)
            now = trio.current_time()
            for key, (at, since) in list(self._due.items()):
                if at <= now and self._due.get(key) == (at, since):
                    del self._due[key]
                    await self._silent(key, since)

    async def serve_members(self) -> None:
        """Follows serf's membership for on-demand nodes; until cancelled."""
        async for change in self._doorbell.changes():
            node = self._registry.get(change.organization, change.node)
            if node is None or node.link != LinkMode.ON_DEMAND or self._links.get(*_key(node)) is not None:
                continue
            now = trio.current_time()
            if change.status != "alive":
                if node.presence is Presence.UP:
                    self._due.pop(_key(node), None)
                    await self._down(_key(node), f"serf_{change.status}", now)
            elif node.presence is Presence.DOWN and node.presence_reason.startswith("serf_") and self._is_fresh(node):
                await self._set(_key(node), Presence.UP, "serf_alive", self._clock.now())
                self._look_at(_key(node), self._fresh_until(node), since=now)

    def _fresh_until(self, node: Node) -> float:
        return max(self._clock.moment_of(node.last_seen_at or 0.0), self._began) + self._timing.on_demand_fresh

    def _is_fresh(self, node: Node) -> bool:
        return self._fresh_until(node) > trio.current_time()

    def _look_at(self, key: NodeKey, at: float, *, since: float) -> None:
        if self._held:
            return
        self._due[key] = (at, since)
        self._wake.set()

    async def _silent(self, key: NodeKey, since: float) -> None:
        if self._links.get(*key) is not None:
            return
        node = self._registry.get(*key)
        if node is None:
            return
        if node.link == LinkMode.ATTACHED:
            reason = "stream_lost"
        elif not self._is_fresh(node):
            reason = "stale"
        elif (status := self._doorbell.member_status(*key)) != "alive":
            reason = f"serf_{status or 'unknown'}"
        else:
            self._look_at(key, self._fresh_until(node), since=since)
            await self._tell_runs(key, "stream_lost", since)
            return
        await self._down(key, reason, since)

    async def _down(self, key: NodeKey, reason: str, since: float) -> None:
        node = self._registry.get(*key)
        if node is not None and node.presence is Presence.UP:
            await self._set(key, Presence.DOWN, reason, self._clock.time_of(since))
        await self._tell_runs(key, reason, since)

    async def _tell_runs(self, key: NodeKey, reason: str, since: float) -> None:
        for run in self._runs_of_node(*key):
            await run.post(NodeSilent(since=self._clock.time_of(since), reason=reason))

    async def _set(self, key: NodeKey, presence: Presence, reason: str, since: float) -> None:
        await self._registry.set_presence(
            *key, presence, reason=reason, since=since, longest_pause=self._timing.store_retry
        )


def _key(node: Node) -> NodeKey:
    return node.organization, node.name
