"""Which old nodes are up: a heartbeat within ten minutes, while serf says that the node is alive.

Anybody on the gossip ring can send a heartbeat in anybody's name, and serf does not tell who did. What can be closed is
closed here, the rest cannot be and stands in docs/legacy.md:

* a heartbeat counts only for a registered old node that serf sees alive, so an agent of ours cannot be touched by one;
* it names a node and not its organization, so it counts for the old nodes of that name in all of them;
* only ``up`` is believed: nobody can talk a node down. Down is what serf says, or ten minutes of silence;
* what a node reports over HTTP is signed, and counts as a heartbeat that cannot be forged.

A heartbeat writes nothing: what is stored is a change.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Final

import structlog
import trio

from shovey_trio.core.jobs.events import NodeHeard, NodeSilent
from shovey_trio.core.jobs.model import Node, Presence
from shovey_trio.core.jobs.states import RunState
from shovey_trio.nursery.handles import RunHandle
from shovey_trio.nursery.ports import MemberChange, NurseryClock
from shovey_trio.nursery.registry import NodeRegistry
from shovey_trio.nursery.settings import Timing
from shovey_trio.shovey.kind import KIND, SchobTiming
from shovey_trio.shovey.protocol.wire import STATUS_UP
from shovey_trio.shovey.route.bell import SchobBell
from shovey_trio.shovey.route.names import nodes_called

_log = structlog.get_logger(__name__)
# How exactly it is known when a node was last heard, in seconds; a node that sends output is heard all the time.
_SEEN_EVERY: Final = 1.0


class SchobPresence:
    """Keeps the presence of old nodes true. ``serve`` and ``serve_members`` must run."""

    def __init__(
        self,
        *,
        organization: str,
        registry: NodeRegistry,
        bell: SchobBell,
        changes: Callable[[], AsyncIterator[MemberChange]],
        clock: NurseryClock,
        timing: Timing,
        waits: SchobTiming,
        runs_of_node: Callable[[str, str], list[RunHandle]],
    ) -> None:
        self._organization = organization
        self._registry = registry
        self._bell = bell
        self._changes = changes
        self._clock = clock
        self._timing = timing
        self._waits = waits
        self._runs_of_node = runs_of_node
        # A restart is, to presence, a moment in which every node had just been heard.
        self._began = trio.current_time()

    async def said(self, name: str, status: str) -> bool:
        """Takes a heartbeat from the ring; returns whether it is to be answered.

        Args:
            name: as the node calls itself, which does not say of which organization it is.
            status: its word; only ``up`` changes anything.
        """
        alive = [node for node in nodes_called(self._registry, name) if self._serf(node) == "alive"]
        if status != STATUS_UP or not alive:
            _log.info("legacy.heartbeat_ignored", node=name[:200], status=status[:40])
            return False
        for node in alive:
            await self.heard(node.organization, node.name, "heartbeat")
        return True

    async def heard(self, organization: str, name: str, reason: str) -> None:
        """Notes a sign of life of an old node, and that it is up; ``reason`` is what it was."""
        node = self._registry.get(organization, name)
        if node is None or node.link != KIND:
            return
        now = self._clock.now()
        if not 0 <= now - (node.last_seen_at or 0.0) < _SEEN_EVERY:
            self._registry.saw(organization, name, now)
        if node.presence is not Presence.UP and self._serf(node) == "alive":
            await self._set(node, Presence.UP, reason, now)
        for run in self._runs_of_node(organization, name):
            if run.run.state is RunState.UNKNOWN and run.run.accepted_at is not None:
                await run.post(NodeHeard())

    async def serve(self) -> None:
        """Looks every ``SchobTiming.check`` for nodes that have fallen silent; until cancelled."""
        while True:
            await trio.sleep(self._waits.check)
            now = self._clock.now()
            for node in self._registry.all():
                if node.link != KIND or node.presence is not Presence.UP:
                    continue
                since = max(self._clock.moment_of(node.last_seen_at or 0.0), self._began)
                if since + self._waits.fresh <= trio.current_time():
                    await self._down(node, "heartbeat_lost", self._clock.time_of(since))
                elif (status := self._serf(node)) not in ("alive", "unknown"):
                    await self._down(node, f"serf_{status}", now)

    async def serve_members(self) -> None:
        """Marks a node down as soon as serf does; until cancelled."""
        async for change in self._changes():
            # A plain name has come apart as an organization without a node.
            node = self._node(f"{change.organization}:{change.node}" if change.node else change.organization)
            if node is None or node.presence is not Presence.UP:
                continue
            status = self._serf(node)
            if status not in ("alive", "unknown"):
                await self._down(node, f"serf_{status}", self._clock.now())

    def _node(self, name: str) -> Node | None:
        found = self._registry.get(self._organization, name)
        if found is None:
            organization, _, node = name.partition(":")
            found = self._registry.get(organization, node)
        return found if found is not None and found.link == KIND else None

    def _serf(self, node: Node) -> str:
        return self._bell.member_status(node.organization, node.name) or "unknown"

    async def _down(self, node: Node, reason: str, since: float) -> None:
        await self._set(node, Presence.DOWN, reason, since)
        for run in self._runs_of_node(node.organization, node.name):
            await run.post(NodeSilent(since=since, reason=reason))

    async def _set(self, node: Node, presence: Presence, reason: str, since: float) -> None:
        await self._registry.set_presence(
            node.organization,
            node.name,
            presence,
            reason=reason,
            since=since,
            longest_pause=self._timing.store_retry,
        )
