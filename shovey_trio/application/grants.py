"""Grants: given and taken back, and whether somebody's permit a command on nodes."""

from __future__ import annotations

from collections.abc import Sequence

from shovey_trio.application.audit import Actor
from shovey_trio.application.chef_keys import find_user
from shovey_trio.core.audit.records import AuditAction, AuditEntry
from shovey_trio.core.errors import InvalidRequest, NotFound, PermissionDenied
from shovey_trio.core.jobs.model import Grant, Node, Principal, Role
from shovey_trio.core.jobs.targeting import predicate
from shovey_trio.core.trust.grants import GrantDecision, decide_grants, parse_granted_nodes
from shovey_trio.nursery.registry import NodeRegistry
from shovey_trio.store.contract import GrantStore, Store


async def give_grant(store: Store, actor: Actor, given: Grant) -> tuple[Role, int]:
    """Gives a user a grant; returns their role, and how many nodes it covers now.

    Raises:
        InvalidRequest: ``nodes`` cannot be read.
        NotFound: there is no such user.
    """
    covers = predicate(parse_granted_nodes(given.nodes))
    user = await find_user(store, given.organization, given.user)
    if user is None:
        raise NotFound(f"there is no user {given.user}", user=given.user)
    await store.write_grant(given, audit=_entry(actor, AuditAction.GRANT_GIVEN, given))
    known = (node for node in await store.load_nodes() if node.organization == given.organization)
    return user.role, sum(covers(node) for node in known)


async def take_grant(store: GrantStore, actor: Actor, given: Grant, *, unrestrict: bool) -> int:
    """Takes a grant back; returns how many are left.

    Raises:
        NotFound: there is no such grant.
        InvalidRequest: it is the last one, and ``unrestrict`` is not given.
    """
    grants = await store.load_grants(given.organization, given.user)
    if given not in grants:
        raise NotFound(f"user/{given.user} has no grant for {given.command} on {given.nodes}", user=given.user)
    if len(grants) == 1 and not unrestrict:
        raise InvalidRequest(
            "without its last grant an operator may start everything; --unrestrict says that this is meant",
            field="unrestrict",
        )
    await store.remove_grant(given, audit=_entry(actor, AuditAction.GRANT_REVOKED, given))
    return len(grants) - 1


def _entry(actor: Actor, action: AuditAction, given: Grant) -> AuditEntry:
    return actor.entry(action, f"user/{given.user}", command=given.command, nodes=given.nodes)


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
