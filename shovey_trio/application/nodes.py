"""The registered nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import structlog

from shovey_trio.application.audit import Actor
from shovey_trio.application.removal import remove_node
from shovey_trio.core.errors import NotFound
from shovey_trio.core.jobs.events import NodeSilent, NodeUnavailable
from shovey_trio.core.jobs.model import Node, NodeStatus, Presence, Principal
from shovey_trio.core.jobs.targeting import has_tags
from shovey_trio.nursery.ports import Doorbell
from shovey_trio.nursery.registry import NodeRegistry
from shovey_trio.nursery.services import Services
from shovey_trio.nursery.supervisor import Supervisor
from shovey_trio.store.contract import Store

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFilter:
    """Which nodes a listing shows; empty means all."""

    presences: frozenset[Presence] = frozenset()
    match: str = ""
    tags: Mapping[str, str] | None = None

    def admits(self, node: Node) -> bool:
        return (
            (not self.presences or node.presence in self.presences)
            and (not self.match or fnmatchcase(node.name, self.match))
            and (not self.tags or has_tags(node, self.tags))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """A node with what is known of it right now."""

    node: Node
    attached: bool
    serf_status: str


class Nodes:
    """Nodes of the controller."""

    def __init__(
        self,
        *,
        store: Store,
        services: Services,
        supervisor: Supervisor,
        registry: NodeRegistry,
        doorbell: Doorbell,
    ) -> None:
        self._store = store
        self._services = services
        self._supervisor = supervisor
        self._registry = registry
        self._doorbell = doorbell

    def list_nodes(
        self, principal: Principal, where: NodeFilter, *, limit: int, after: str
    ) -> tuple[Sequence[NodeView], str]:
        """Nodes by name, from after a name on; the second value continues the listing, '' at its end."""
        nodes = self._registry.of(principal.organization)
        names = sorted(name for name in nodes if name > after and where.admits(nodes[name]))
        page = names[:limit]
        return [self._view(nodes[name]) for name in page], page[-1] if len(names) > limit else ""

    def get(self, principal: Principal, name: str) -> NodeView:
        """One node.

        Raises:
            NotFound: no such node in the principal's organization.
        """
        return self._view(self._known(principal, name))

    async def statuses(
        self, principal: Principal, name: str, *, limit: int, after: str
    ) -> tuple[Sequence[NodeStatus], str]:
        """The history of a node's presence, newest first.

        Raises:
            NotFound: no such node in the principal's organization.
        """
        self._known(principal, name)
        return await self._store.list_node_statuses(principal.organization, name, limit=limit, after=after)

    async def remove(self, principal: Principal, name: str) -> None:
        """Cuts a node off for good, with its certificates and Chef keys.

        Runs it has not answered are ``unavailable``; those it has are ``unknown`` until the reconnect grace is over.

        Raises:
            NotFound: no such node in the principal's organization.
        """
        actor = Actor.of(principal, self._services.clock.now())
        jobs = [run.run.job_id for run in self._supervisor.runs_of_node(principal.organization, name)]
        await remove_node(self._store, actor, name, force=True, unfinished=jobs)
        await self.reload()

    async def reload(self) -> None:
        """Takes up what a command on this host has changed: new nodes are known, removed ones as after ``remove``."""
        for node in await self._registry.load_changes():
            _log.info("node.removed", organization=node.organization, node=node.name)
            self._cut_off(node.organization, node.name)
            await self._tell_runs(node.organization, node.name)

    def attached_count(self) -> int:
        """How many agents have their stream open, over all organizations."""
        return len(self._services.links)

    def unaddressable(self, principal: Principal) -> Sequence[str]:
        """Names of registered nodes that serf cannot address, by name; empty without serf."""
        return self._doorbell.unaddressable(principal.organization, sorted(self._registry.of(principal.organization)))

    def _cut_off(self, organization: str, name: str) -> None:
        link = self._services.links.get(organization, name)
        if link is not None:
            link.close("the node was removed")

    async def _tell_runs(self, organization: str, name: str) -> None:
        now = self._services.clock.now()
        for run in self._supervisor.runs_of_node(organization, name):
            await run.post(NodeUnavailable(cause="node_removed", detail="the node was removed"))
            await run.post(NodeSilent(since=now, reason="node_removed"))

    def _known(self, principal: Principal, name: str) -> Node:
        node = self._registry.get(principal.organization, name)
        if node is None:
            raise NotFound(f"there is no node {name}", node=name)
        return node

    def _view(self, node: Node) -> NodeView:
        attached = self._services.links.get(node.organization, node.name) is not None
        return NodeView(
            # Signs of life on a stream are not written down one by one: it is open because they come.
            node=replace(node, last_seen_at=self._services.clock.now()) if attached else node,
            attached=attached,
            serf_status=self._doorbell.member_status(node.organization, node.name),
        )
