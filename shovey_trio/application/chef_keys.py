"""The Chef keys by which users and nodes sign requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from shovey_trio.application.audit import Actor
from shovey_trio.core.audit.records import AuditAction
from shovey_trio.core.chef.keys import ChefKey, read_chef_keys, write_chef_keys
from shovey_trio.core.chef.principals import ChefPrincipal, ChefPrincipalKind
from shovey_trio.core.errors import InvalidRequest, NotFound
from shovey_trio.core.jobs.model import Role, User
from shovey_trio.store.contract import ChefPrincipalStore, UserStore


class ChefStore(ChefPrincipalStore, UserStore, Protocol):
    """What of a store Chef principals need."""


async def find_user(store: UserStore, organization: str, name: str) -> User | None:
    """A user, by name."""
    users = await store.load_users()
    return next((user for user in users if (user.organization, user.name) == (organization, name)), None)


async def list_chef_principals(
    store: ChefPrincipalStore, organization: str, kind: ChefPrincipalKind
) -> Sequence[ChefPrincipal]:
    """All of a kind, by name."""
    stored = await store.load_chef_principals()
    return [principal for principal in stored if (principal.organization, principal.kind) == (organization, kind)]


async def add_chef_key(
    store: ChefStore,
    actor: Actor,
    kind: ChefPrincipalKind,
    name: str,
    public_key: str,
    *,
    role: Role | None = None,
    alone: bool = False,
) -> ChefPrincipal:
    """Lets a principal sign with a further key; who is not there yet is made.

    Args:
        public_key: PEM; several blocks are several keys.
        role: what a user may do from now on, over gRPC as well; None leaves it as it is.
        alone: the keys that were there before do not hold any more.

    Raises:
        InvalidRequest: the key is none, there are too many, or a new user comes without a role.
    """
    given = read_chef_keys(public_key)
    known = await _find(store, actor.organization, kind, name)
    before = () if known is None or alone else read_chef_keys(known.public_key)
    pem = write_chef_keys((*before, *given))
    read_chef_keys(pem)
    key_ids = [key.key_id for key in given]
    entry = actor.entry(AuditAction.CHEF_KEY_SET, f"{kind}/{name}", key_ids=key_ids, only=alone, role=role or "")
    if kind is ChefPrincipalKind.NODE:
        role = Role.NODE
    else:
        role = await _give_role(store, actor, name, role, before=known.role if known else None)
    principal = ChefPrincipal(
        organization=actor.organization,
        kind=kind,
        name=name,
        role=role,
        public_key=pem,
        created_at=known.created_at if known else actor.at,
    )
    await store.write_chef_principals([principal], audit=entry)
    return principal


async def remove_chef_key(
    store: ChefPrincipalStore, actor: Actor, kind: ChefPrincipalKind, name: str, key_id: str = ""
) -> Sequence[ChefKey]:
    """Takes one key away, or all; returns those that are left.

    Raises:
        NotFound: there is no such key.
    """
    known = await _find(store, actor.organization, kind, name)
    if known is None:
        raise NotFound(f"no {kind} {name} has a Chef key", name=name)
    keys = read_chef_keys(known.public_key)
    left = [key for key in keys if key_id and key.key_id != key_id]
    if len(left) == len(keys):
        raise NotFound(f"{kind}/{name} has no key {key_id}", name=name, key_id=key_id)
    removed = actor.entry(AuditAction.CHEF_KEY_REMOVED, known.principal.label, key_id=key_id or "all")
    if left:
        await store.write_chef_principals([replace(known, public_key=write_chef_keys(left))], audit=removed)
    else:
        await store.remove_chef_principal(actor.organization, kind, name, audit=removed)
    return left


async def _give_role(store: UserStore, actor: Actor, name: str, role: Role | None, *, before: Role | None) -> Role:
    """Makes the user, or changes their role; returns the role that holds."""
    known = await find_user(store, actor.organization, name)
    if known is not None and role in (None, known.role):
        return known.role
    role = role or before
    if role is None:
        raise InvalidRequest(f"there is no user {name} yet; say which role it has", field="role")
    created_at = actor.at if known is None else known.created_at
    await store.write_user(User(name=name, organization=actor.organization, role=role, created_at=created_at))
    return role


async def _find(
    store: ChefPrincipalStore, organization: str, kind: ChefPrincipalKind, name: str
) -> ChefPrincipal | None:
    found = await list_chef_principals(store, organization, kind)
    return next((principal for principal in found if principal.name == name), None)
