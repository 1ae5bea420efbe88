"""Taking users, nodes and organizations out of a store.

A running controller takes the removal up by ``Nodes.reload`` and ``Identities.load``, after its own as after one by a
command beside it: streams are cut, and runs of nodes that are gone end as far as they can be known. History stays until
it is old.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shovey_trio.application.audit import Actor, record
from shovey_trio.core.audit.records import AuditAction
from shovey_trio.core.chef.principals import ChefPrincipalKind
from shovey_trio.core.errors import Code, Exit, InvalidRequest, NotFound, ShoveyError
from shovey_trio.identity.names import node_identity, user_identity
from shovey_trio.store.contract import Store

# Ids of jobs that a refusal spells out.
_SHOWN = 20


class StillInUse(ShoveyError):
    """Something that work depends on was to be taken away; ``jobs`` names unfinished jobs."""

    reason, code, http, exit = "STILL_IN_USE", Code.FAILED_PRECONDITION, 409, Exit.CONFLICT


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """What was taken away.

    Attributes:
        certificates: how many are void now.
        chef_key: whether it could sign requests for the REST shim.
        unfinished: ids of the unfinished jobs that were left without it.
    """

    certificates: int
    chef_key: bool
    unfinished: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovedOrganization:
    """What an organization had; ``unfinished`` as in ``Removed``."""

    users: int
    nodes: int
    unfinished: Sequence[str]


async def remove_user(store: Store, actor: Actor, name: str) -> Removed:
    """Removes a user with their certificates and Chef keys. Their grants hold for the next of that name.

    Raises:
        NotFound: there is no such user.
        InvalidRequest: it is who asks, so that an organization is not locked out by accident.
    """
    identity = user_identity(actor.organization, name)
    if identity.label == actor.label:
        raise InvalidRequest("you cannot remove the user you are calling as", field="name")
    removed = actor.entry(AuditAction.USER_REMOVED, identity.label)
    known = await store.remove_user(actor.organization, name, audit=removed)
    chef_key = await store.remove_chef_principal(
        actor.organization, ChefPrincipalKind.USER, name, audit=None if known else removed
    )
    if not known and not chef_key:
        raise NotFound(f"there is no user {name}", user=name)
    certificates = await store.revoke_certificates(actor.organization, identity.label)
    return Removed(certificates=len(certificates), chef_key=chef_key)


async def remove_node(
    store: Store, actor: Actor, name: str, *, force: bool, unfinished: Sequence[str] | None = None
) -> Removed:
    """Removes a node with its certificates and Chef keys.

    Args:
        unfinished: ids of the jobs that have unfinished runs there; looked for in the store if they are not given.

    Raises:
        NotFound: there is no such node.
        StillInUse: it has runs that are not finished, and ``force`` is not given; nothing was changed.
    """
    organization, identity = actor.organization, node_identity(actor.organization, name)
    if not any((node.organization, node.name) == (organization, name) for node in await store.load_nodes()):
        raise NotFound(f"there is no node {name}", node=name)
    if unfinished is None:
        unfinished = await _unfinished(store, organization, node=name)
    _refuse(f"node {name}", unfinished, force=force)
    # Certificates first: a node that is gone must not come back while it is being removed.
    certificates = await store.revoke_certificates(organization, identity.label)
    chef_key = await store.remove_chef_principal(organization, ChefPrincipalKind.NODE, name)
    await store.remove_node(
        organization, name, audit=actor.entry(AuditAction.NODE_REMOVED, identity.label, force=force)
    )
    return Removed(certificates=len(certificates), chef_key=chef_key, unfinished=unfinished)


async def remove_organization(store: Store, actor: Actor, *, force: bool) -> RemovedOrganization:
    """Removes everybody of the actor's organization: users and their grants, nodes, Chef keys, certificates.

    Repeating it after a failure goes on where it stopped. Its keys are files, and the caller's to remove.

    Raises:
        StillInUse: it has jobs that are not finished, and ``force`` is not given; nothing was changed.
    """
    organization = actor.organization
    unfinished = await _unfinished(store, organization)
    _refuse(f"organization {organization}", unfinished, force=force)
    users = [user.name for user in await store.load_users() if user.organization == organization]
    for name in users:
        for grant in await store.load_grants(organization, name):
            await store.remove_grant(grant)
        await remove_user(store, actor, name)
    nodes = [node.name for node in await store.load_nodes() if node.organization == organization]
    for name in nodes:
        await remove_node(store, actor, name, force=True, unfinished=())
    for principal in await store.load_chef_principals():
        if principal.organization == organization:
            await store.remove_chef_principal(organization, principal.kind, principal.name)
    await record(store, actor.entry(AuditAction.ORGANIZATION_REMOVED, f"organization/{organization}", force=force))
    return RemovedOrganization(users=len(users), nodes=len(nodes), unfinished=unfinished)


async def _unfinished(store: Store, organization: str, *, node: str | None = None) -> Sequence[str]:
    pictures = await store.unfinished_jobs()
    return [
        picture.job.id
        for picture in pictures
        if picture.job.organization == organization
        and (node is None or any(run.node == node and not run.is_terminal for run in picture.runs))
    ]


def _refuse(what: str, unfinished: Sequence[str], *, force: bool) -> None:
    if unfinished and not force:
        shown = ", ".join(unfinished[:_SHOWN])
        raise StillInUse(f"{what} has {len(unfinished)} unfinished jobs: {shown}", jobs=",".join(unfinished[:1000]))
