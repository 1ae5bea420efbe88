"""The agents that are attached right now, and waiting for one to come or go.

A node has at most one link: a second stream of the same node replaces the first, because a node that lost its
network notices that before the controller does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import trio

from shovey_trio.nursery.ports import AgentLink

NodeKey = tuple[str, str]
"""(organization, node name)."""


@dataclass(slots=True)
class _Entry:
    link: AgentLink
    gone: trio.Event = field(default_factory=trio.Event)


class Links:
    """Open control streams by node. All methods run in the trio thread; only ``wait_*`` may be cancelled."""

    def __init__(self) -> None:
        self._entries: dict[NodeKey, _Entry] = {}
        self._arrivals: dict[NodeKey, trio.Event] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[AgentLink]:
        return iter([entry.link for entry in self._entries.values()])

    @property
    def awaited(self) -> int:
        """How many nodes somebody waits for."""
        return len(self._arrivals)

    def get(self, organization: str, node: str) -> AgentLink | None:
        entry = self._entries.get((organization, node))
        return None if entry is None else entry.link

    def add(self, link: AgentLink) -> None:
        """Makes ``link`` the node's link; an older one is closed."""
        key = (link.organization, link.node)
        before = self._entries.get(key)
        self._entries[key] = _Entry(link)
        if before is not None:
            before.gone.set()
            before.link.close("replaced by a newer stream of the same node")
        arrival = self._arrivals.pop(key, None)
        if arrival is not None:
            arrival.set()

    def remove(self, link: AgentLink) -> bool:
        """Forgets ``link``; False when it had been replaced already."""
        key = (link.organization, link.node)
        entry = self._entries.get(key)
        if entry is None or entry.link is not link:
            return False
        del self._entries[key]
        entry.gone.set()
        return True

    async def wait_attached(self, organization: str, node: str) -> AgentLink:
        """Waits until the node is attached and returns its link."""
        key = (organization, node)
        while (entry := self._entries.get(key)) is None:
            arrival = self._arrivals.setdefault(key, trio.Event())
            try:
                await arrival.wait()
            finally:
                if not arrival.statistics().tasks_waiting and self._arrivals.get(key) is arrival:
                    del self._arrivals[key]
        return entry.link

    async def wait_gone(self, link: AgentLink) -> None:
        """Waits until ``link`` is no longer its node's link."""
        entry = self._entries.get((link.organization, link.node))
        if entry is None or entry.link is not link:
            await trio.lowlevel.checkpoint()
            return
        await entry.gone.wait()
