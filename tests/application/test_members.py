"""Users and nodes are made and removed by the same code whoever asks, and every change has its record."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lab.chef_client import make_key, public_pem
from lab.memory_store import MemoryStore
from shovey_trio.application.audit import Actor, CallOrigin
from shovey_trio.application.chef_keys import add_chef_key
from shovey_trio.application.members import make_user, register_node
from shovey_trio.application.removal import remove_node, remove_user
from shovey_trio.core.chef.principals import ChefPrincipalKind
from shovey_trio.core.errors import InvalidRequest, NotFound
from shovey_trio.core.jobs.model import Role

HOST = Actor(
    organization="acme",
    label="host/root",
    at=1_800_000_000.0,
    came=CallOrigin(method="shovey-trio user add", peer="host", rule="owner of the data directory"),
)
ADA = Actor(organization="acme", label="user/ada", at=1_800_000_000.0)


async def records(store: MemoryStore) -> list[dict[str, Any]]:
    return [json.loads(record.body) for record in await store.read_audit(after_seq=0, limit=100)]


async def test_record_of_a_change_says_who_had_it_made_and_by_what_door() -> None:
    store = MemoryStore()
    await make_user(store, HOST, "bob", Role.VIEWER)
    [made] = await records(store)
    assert (made["action"], made["subject"], made["detail"]) == ("user.made", "user/bob", {"role": "viewer"})
    assert (made["principal"], made["method"], made["peer"]) == ("host/root", "shovey-trio user add", "host")


async def test_removal_of_a_node_that_never_had_a_certificate_is_on_record() -> None:
    store = MemoryStore()
    await register_node(store, HOST, "old-1", kind="other")
    removed = await remove_node(store, ADA, "old-1", force=False)
    assert removed.certificates == 0
    assert [record["action"] for record in await records(store)] == ["node.added", "node.removed"]
    assert await store.load_nodes() == ()


async def test_user_known_by_a_key_alone_is_removed_with_a_record() -> None:
    store = MemoryStore()
    kind = ChefPrincipalKind.USER
    await add_chef_key(store, HOST, kind, "bob", public_pem(make_key()), role=Role.OPERATOR)
    await store.remove_user("acme", "bob")
    assert (await remove_user(store, ADA, "bob")).chef_key
    assert [record["action"] for record in await records(store)][-1] == "user.removed"
    with pytest.raises(NotFound):
        await remove_user(store, ADA, "bob")


async def test_nobody_removes_themselves_by_accident() -> None:
    store = MemoryStore()
    await make_user(store, HOST, "ada", Role.ADMIN)
    with pytest.raises(InvalidRequest):
        await remove_user(store, ADA, "ada")
    assert len(await store.load_users()) == 1


async def test_user_with_a_key_that_is_none_is_not_made() -> None:
    store = MemoryStore()
    with pytest.raises(InvalidRequest):
        await make_user(store, HOST, "bob", Role.VIEWER, "no key")
    assert (await store.load_users(), await records(store)) == ((), [])
