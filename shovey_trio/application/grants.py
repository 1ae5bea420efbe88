"""Whether somebody's grants permit a command on nodes: asked before a start, before a cancel, and by ``explain``."""

from __future__ import annotations

from collections.abc import Sequence

from shovey_trio.core.errors import PermissionDenied
from shovey_trio.core.jobs.model import Grant, Node, Principal, Role
from shovey_trio.core.trust.grants import GrantDecision, decide_grants
from shovey_trio.nursery.registry import NodeRegistry
from shovey_trio.store.contract import GrantStore


class Grants:
    """The grants of all users, read from the store each time, so that a change holds at once."""

    def __init__(self, store: GrantStore, registry: NodeRegistry) -> None:
        self._store = store
        self._registry = registry

    async def decide(self, principal: Principal, command: str, nodes: Sequence[str]) -> GrantDecision:
        """What a principal's grants say of a command on the nodes of these names."""
        grants: Sequence[Grant] = ()
        if principal.role is Role.OPERATOR:
            grants = await self._store.load_grants(principal.organization, principal.name)
        known = self._registry.of(principal.organization)
        asked = (known.get(name) or _unregistered(principal.organization, name) for name in nodes)
        return decide_grants(principal.role, grants, command, asked)

    async def demand(self, principal: Principal, command: str, nodes: Sequence[str]) -> str:
        """The rule that permits it.

        Raises:
            PermissionDenied: none does; the message says what would.
        """
        decision = await self.decide(principal, command, nodes)
        if not decision.is_allowed:
            raise PermissionDenied(
                f"{decision.rule}; an admin can grant it: shovey-trio user grant {principal.name} --command {command} "
                "--nodes NODES",
                nodes=",".join(decision.refused[:1000]),
            )
        return decision.rule


def _unregistered(organization: str, name: str) -> Node:
    """A name that no node has, or has any more: nothing is known of it but that."""
    return Node(name=name, organization=organization, enrolled_at=0.0, presence_since=0.0)
