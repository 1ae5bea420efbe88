"""Contract: users and nodes with Chef keys."""

from __future__ import annotations

from dataclasses import replace

from shovey_trio.core.chef.principals import ChefPrincipal, ChefPrincipalKind
from shovey_trio.core.jobs.model import Role
from shovey_trio.store.contract import Store

NOW = 1_800_000_000.25
ADMIN = ChefPrincipal(
    organization="default",
    kind=ChefPrincipalKind.USER,
    name="admin",
    role=Role.ADMIN,
    public_key="-----BEGIN PUBLIC KEY-----\n…\n",
    created_at=NOW,
)
NODE = replace(ADMIN, kind=ChefPrincipalKind.NODE, role=Role.NODE)


async def test_user_and_node_of_one_name_are_two_principals(store: Store) -> None:
    await store.write_chef_principals([ADMIN, NODE])
    assert list(await store.load_chef_principals()) == [NODE, ADMIN]


async def test_principal_is_written_over_whole(store: Store) -> None:
    await store.write_chef_principals([ADMIN, NODE])
    changed = replace(ADMIN, role=Role.OPERATOR, public_key="another", created_at=NOW + 1)
    await store.write_chef_principals([changed])
    assert list(await store.load_chef_principals()) == [NODE, changed]


async def test_removed_principal_is_gone_and_others_stay(store: Store) -> None:
    other = replace(ADMIN, organization="other")
    await store.write_chef_principals([ADMIN, NODE, other])
    assert await store.remove_chef_principal("default", ChefPrincipalKind.USER, "admin")
    assert not await store.remove_chef_principal("default", ChefPrincipalKind.USER, "admin")
    assert list(await store.load_chef_principals()) == [NODE, other]
