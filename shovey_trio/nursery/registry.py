"""The registered nodes, in memory and in the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

import structlog

from shovey_trio.core.jobs.model import Node, NodeStatus, Presence
from shovey_trio.nursery.persist import until_stored
from shovey_trio.store.contract import NodeStore

_log = structlog.get_logger(__name__)
_NONE: Mapping[str, Node] = MappingProxyType({})


class NodeRegistry:
    """Every registered node, by organization and name; about 1 KiB each.

    A node is known once the store has it. Its presence is true in memory first and made durable after.
    ``last_seen_at`` is written with the next change of presence: it is a hint, and a write per sign of life would be
    the heartbeat load this design avoids.
    """

    def __init__(self, store: NodeStore, presence_changed: Callable[[NodeStatus], None] | None = None) -> None:
        """Args:
        store: where nodes are kept.
        presence_changed: is called with every change of a node's presence; it must not block.
        """
        self._store = store
        self._nodes: dict[str, dict[str, Node]] = {}
        self._presence_changed = presence_changed

    async def load(self) -> None:
        """Reads all nodes from the store; once, at start."""
        for node in await self._store.load_nodes():
            self._nodes.setdefault(node.organization, {})[node.name] = node

    async def load_changes(self) -> list[Node]:
        """Takes in the nodes that the command line has registered since, and lets go of those it has removed.

        Those that are known stay as they are. Returns the removed ones: whoever has to do with them must be told.
        """
        # Known before the store is read: one that is registered meanwhile may be missing in what is read.
        known = self.all()
        stored = {(node.organization, node.name): node for node in await self._store.load_nodes()}
        for node in stored.values():
            self._nodes.setdefault(node.organization, {}).setdefault(node.name, node)
        gone = [node for node in known if (node.organization, node.name) not in stored]
        return [node for node in gone if self._nodes[node.organization].pop(node.name, None) is not None]

    def of(self, organization: str) -> Mapping[str, Node]:
        """The organization's nodes by name; a live view."""
        return self._nodes.get(organization, _NONE)

    def get(self, organization: str, name: str) -> Node | None:
        return self._nodes.get(organization, {}).get(name)

    def named(self, name: str) -> list[Node]:
        """The nodes of this name, of every organization."""
        return [nodes[name] for nodes in self._nodes.values() if name in nodes]

    def all(self) -> list[Node]:
        return [node for nodes in self._nodes.values() for node in nodes.values()]

    async def put(self, node: Node, *, only_known: bool = False) -> None:
        """Registers a node, or replaces what is known of it – but for its presence, if that changes meanwhile.

        Args:
            only_known: do not bring back into the store what a command has removed from it since.
        """
        before = self.get(node.organization, node.name)
        await self._store.write_node(node, only_known=only_known)
        now = self.get(node.organization, node.name)
        if now is not None and now is not before:
            node = replace(
                node,
                presence=now.presence,
                presence_since=now.presence_since,
                presence_reason=now.presence_reason,
                last_seen_at=now.last_seen_at,
            )
        self._nodes.setdefault(node.organization, {})[node.name] = node
        if now is not None and now is not before:
            await self._store.write_node(node, only_known=only_known)

    async def set_presence(
        self, organization: str, name: str, presence: Presence, *, reason: str, since: float, longest_pause: float
    ) -> None:
        """Changes a node's presence and returns when its history has it; nothing if that is no news.

        In memory first: two changes in a row must not overtake each other while the first is being written, for which
        it is tried again and again, at most ``longest_pause`` seconds apart.

        Raises:
            StoreCorrupt: final; the daemon has to stop.
        """
        node = self.get(organization, name)
        if node is None or (node.presence is presence and node.presence_reason == reason):
            return
        self._nodes[organization][name] = replace(node, presence=presence, presence_since=since, presence_reason=reason)
        status = NodeStatus(node=name, organization=organization, presence=presence, since=since, reason=reason)
        if self._presence_changed is not None:
            self._presence_changed(status)

        async def write() -> None:
            # As it is by then, if it is still there.
            now = self.get(organization, name)
            if now is not None:
                await self._store.write_node(now, status=status, only_known=True)

        await until_stored(write, longest_pause=longest_pause)
        _log.info("node.presence", node=name, presence=presence.value, reason=reason)

    def saw(self, organization: str, name: str, at: float) -> None:
        """Notes a sign of life."""
        node = self.get(organization, name)
        if node is not None:
            self._nodes[organization][name] = replace(node, last_seen_at=at)
