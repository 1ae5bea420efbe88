"""The registered nodes, in memory and in the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from shovey_trio.core.model import Node, NodeStatus, Presence
from shovey_trio.nursery.ports import Store

_NONE: Mapping[str, Node] = MappingProxyType({})


class NodeRegistry:
    """Every registered node, by organization and name; about 1 KiB each.

    Memory is changed only after the store has it, except for ``last_seen_at``, which is written with the next change
    of presence: it is a hint, and a write per sign of life would be the heartbeat load this design avoids.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._nodes: dict[str, dict[str, Node]] = {}

    async def load(self) -> None:
        """Reads all nodes from the store; once, at start."""
        for node in await self._store.load_nodes():
            self._nodes.setdefault(node.organization, {})[node.name] = node

    def of(self, organization: str) -> Mapping[str, Node]:
        """The organization's nodes by name; a live view."""
        return self._nodes.get(organization, _NONE)

    def get(self, organization: str, name: str) -> Node | None:
        return self._nodes.get(organization, {}).get(name)

    def all(self) -> list[Node]:
        return [node for nodes in self._nodes.values() for node in nodes.values()]

    async def put(self, node: Node) -> None:
        """Registers a node, or replaces what is known of it."""
        await self._store.write_node(node)
        self._nodes.setdefault(node.organization, {})[node.name] = node

    async def set_presence(
        self, organization: str, name: str, *, presence: Presence, reason: str, since: float
    ) -> bool:
        """Records a change of presence with its history; False when nothing changed or the node is gone."""
        node = self.get(organization, name)
        if node is None or (node.presence is presence and node.presence_reason == reason):
            return False
        changed = replace(node, presence=presence, presence_since=since, presence_reason=reason)
        # First in memory: two changes in a row must not overtake each other while the first is being written.
        self._nodes[organization][name] = changed
        status = NodeStatus(node=name, organization=organization, presence=presence, since=since, reason=reason)
        await self._store.write_node(changed, status=status)
        return True

    def saw(self, organization: str, name: str, at: float) -> None:
        """Notes a sign of life."""
        node = self.get(organization, name)
        if node is not None:
            self._nodes[organization][name] = replace(node, last_seen_at=at)

    async def remove(self, organization: str, name: str) -> bool:
        """Removes a node; False when there was none."""
        removed = await self._store.remove_node(organization, name)
        self._nodes.get(organization, {}).pop(name, None)
        return removed
