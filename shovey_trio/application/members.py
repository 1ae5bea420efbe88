"""Who belongs to an organization: users and nodes are made here, whoever asks for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shovey_trio.application.audit import Actor, record
from shovey_trio.application.chef_keys import ChefStore, add_chef_key, find_user
from shovey_trio.core.audit.records import AuditAction
from shovey_trio.core.chef.keys import read_chef_keys
from shovey_trio.core.chef.principals import ChefPrincipal, ChefPrincipalKind
from shovey_trio.core.errors import InvalidRequest
from shovey_trio.core.jobs.model import Node, Role, User
from shovey_trio.identity.authority import IssuedCertificate
from shovey_trio.identity.names import node_identity, user_identity
from shovey_trio.store.contract import Store


async def make_user(store: ChefStore, actor: Actor, name: str, role: Role, public_key: str | None = None) -> None:
    """Makes a user, with Chef public keys (PEM) if there are some.

    Raises:
        InvalidRequest: the name is not permitted or taken, or the key is none; nothing was changed.
    """
    identity = user_identity(actor.organization, name)
    if public_key is not None:
        read_chef_keys(public_key)
    known = await find_user(store, actor.organization, name)
    if known is not None:
        raise InvalidRequest(f"there is a user {name} already ({known.role})", field="name")
    user = User(name=name, organization=actor.organization, role=role, created_at=actor.at)
    await store.write_user(user, audit=actor.entry(AuditAction.USER_MADE, identity.label, role=role.value))
    if public_key is not None:
        await add_chef_key(store, actor, ChefPrincipalKind.USER, name, public_key)


async def certify_user(
    store: Store, actor: Actor, name: str, role: Role, issued: IssuedCertificate
) -> tuple[User, User | None]:
    """Records a certificate that was issued to a user, who is made, or given this role, by it; and who it was before.

    Raises:
        InvalidRequest: the name is not permitted.
    """
    identity = user_identity(actor.organization, name)
    before = await find_user(store, actor.organization, name)
    created_at = before.created_at if before else actor.at
    user = User(name=name, organization=actor.organization, role=role, created_at=created_at)
    certified = actor.entry(
        AuditAction.USER_CERTIFIED,
        identity.label,
        role=role.value,
        before=before.role.value if before else "",
        serial=issued.serial,
    )
    await store.write_user(user, audit=certified)
    await store.write_certificate(
        serial=issued.serial,
        organization=identity.organization,
        subject=identity.label,
        expires_at=issued.expires_at,
    )
    return user, before


async def register_node(store: Store, actor: Actor, name: str, *, kind: str, public_key: str | None = None) -> None:
    """Makes a node that has no agent of ours, with Chef public keys (PEM) if there are some.

    Raises:
        InvalidRequest: the name is not permitted or taken, or the key is none; nothing was changed.
    """
    identity = node_identity(actor.organization, name)
    for known in await store.load_nodes():
        if (known.organization, known.name) == (identity.organization, identity.name):
            raise InvalidRequest(f"there is a node {name} already ({known.link})", field="name")
    if public_key is not None:
        await add_chef_key(store, actor, ChefPrincipalKind.NODE, name, public_key)
    await store.write_node(_node(actor, name, kind=kind, reason="registered"))
    await record(store, actor.entry(AuditAction.NODE_ADDED, identity.label, kind=kind))


async def import_members(
    store: Store,
    actor: Actor,
    principals: Sequence[ChefPrincipal],
    nodes: Mapping[str, Mapping[str, str]],
    *,
    kind: str,
    source: str,
) -> tuple[int, Sequence[tuple[str, str]]]:
    """Takes over users, keys and nodes of another server; returns how many nodes are new, and who was left out and why.

    Keys of names that are known already are replaced; known users keep their role, known nodes stay as they are.

    Args:
        nodes: tags by name.
        kind: of the new nodes.
        source: where they are from, for the record.
    """
    taken_over = actor.entry(AuditAction.IMPORTED, "", file=source, keys=len(principals))
    await store.write_chef_principals(principals, audit=taken_over)
    users = {user.name for user in await store.load_users() if user.organization == actor.organization}
    for found in principals:
        if found.kind is ChefPrincipalKind.USER and found.name not in users:
            user = User(name=found.name, organization=actor.organization, role=found.role, created_at=actor.at)
            await store.write_user(user)
    known = {node.name for node in await store.load_nodes() if node.organization == actor.organization}
    made, left_out = 0, []
    for name, tags in nodes.items():
        try:
            node_identity(actor.organization, name)
        except InvalidRequest as error:
            left_out.append((f"node {name}", error.message))
            continue
        if name not in known:
            await store.write_node(_node(actor, name, kind=kind, reason="imported", tags=tags))
            made += 1
    return made, left_out


def _node(actor: Actor, name: str, *, kind: str, reason: str, tags: Mapping[str, str] | None = None) -> Node:
    return Node(
        name=name,
        organization=actor.organization,
        tags=tags or {},
        link=kind,
        enrolled_at=actor.at,
        presence_since=actor.at,
        presence_reason=reason,
    )
