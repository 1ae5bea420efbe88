"""Upstream mode with a Chef server that has organizations: who is who there, and who is asked how often."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from lab.chef_client import ChefClient

from .chef_double import ORGANIZATION, ChefDouble, Member, open_chef_double
from .conftest import HARD_LIMIT, Shim, key_of, open_shim

JOBS = f"/organizations/{ORGANIZATION}/shovey/jobs"
PRINCIPAL = f"/organizations/{ORGANIZATION}/principals"
ADMINS = f"/organizations/{ORGANIZATION}/groups/admins"
MEMBERS = [
    Member(kind="user", name="ann", key=key_of("ann")),
    Member(kind="user", name="bob", key=key_of("bob")),
    Member(kind="user", name="eve", key=key_of("eve"), org_member=False),
    Member(kind="client", name="web-1", key=key_of("web-1")),
    Member(kind="client", name="deploy", key=key_of("deploy")),
    # One name, two principals.
    Member(kind="user", name="both", key=key_of("both")),
    Member(kind="client", name="both", key=key_of("both-client")),
]
GROUPS = {"admins": {"users": ["ann"], "groups": ["leads", "admins"]}, "leads": {"clients": ["deploy", "both"]}}


@pytest.fixture
async def chef() -> AsyncIterator[ChefDouble]:
    with trio.fail_after(HARD_LIMIT):
        async with open_chef_double(members=MEMBERS, groups=GROUPS) as opened:
            yield opened


def calling(shim: Shim, name: str, key: str = "") -> ChefClient:
    return ChefClient(port=shim.server.port, user=name, key=key_of(key or name))


async def status(shim: Shim, name: str, key: str = "") -> int:
    return (await calling(shim, name, key).get(JOBS)).status


async def test_rights_are_those_of_the_organizations_groups(chef: ChefDouble, tmp_path: Path) -> None:
    async with open_shim(users={}, up=(), chef=chef.settings(tmp_path)) as shim:
        assert await status(shim, "ann") == 200
        assert await status(shim, "deploy") == 200  # by a group in the group
        assert await status(shim, "bob") == 403
        assert await status(shim, "web-1") == 403
        assert (await calling(shim, "web-1").get(f"/organizations/{ORGANIZATION}/shovey/key")).status == 200
        assert await status(shim, "eve") == 401  # known to the server, not of the organization
        assert await status(shim, "ghost", "ann") == 401
        assert await status(shim, "bob", "ann") == 401


async def test_user_and_client_of_one_name_are_told_apart_by_their_keys(chef: ChefDouble, tmp_path: Path) -> None:
    async with open_shim(users={}, up=(), chef=chef.settings(tmp_path)) as shim:
        assert await status(shim, "both") == 403
        assert await status(shim, "both", "both-client") == 200


async def test_older_form_of_a_principal_is_understood(chef: ChefDouble, tmp_path: Path) -> None:
    chef.api_version = 0
    async with open_shim(users={}, up=(), chef=chef.settings(tmp_path)) as shim:
        assert (await status(shim, "ann"), await status(shim, "bob")) == (200, 403)


async def test_job_started_by_its_path_belongs_to_the_controllers_organization(
    chef: ChefDouble, tmp_path: Path
) -> None:
    async with open_shim(users={}, chef=chef.settings(tmp_path)) as shim:
        started = await calling(shim, "ann").post(JOBS, {"command": "work", "nodes": ["web-1"]})
        assert started.status == 200
        assert started.json["uri"].endswith(f"{JOBS}/{started.json['id']}")
        ended = await shim.rig.ended(started.json["id"])
        assert (ended.organization, ended.created_by) == ("default", "user/ann")
        assert (await calling(shim, "ann").get(f"{JOBS}/{ended.id}")).json["nodes"] == {"succeeded": ["web-1"]}


async def test_each_name_is_asked_for_once_until_the_answer_is_old(chef: ChefDouble, tmp_path: Path) -> None:
    async with open_shim(users={}, up=(), chef=chef.settings(tmp_path)) as shim:
        for _ in range(3):
            assert (await status(shim, "ann"), await status(shim, "ghost", "ann")) == (200, 401)
        assert (chef.asked_for(f"{PRINCIPAL}/ann"), chef.asked_for(f"{PRINCIPAL}/ghost")) == (1, 1)
        assert chef.asked_for(ADMINS) == 1
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(status, shim, "bob")
        assert chef.asked_for(f"{PRINCIPAL}/bob") == 1


async def test_old_answers_are_asked_for_again(chef: ChefDouble, tmp_path: Path) -> None:
    settings = {**chef.settings(tmp_path), "cache": 0.001, "negative_cache": 0.001}
    async with open_shim(users={}, up=(), chef=settings) as shim:
        assert await status(shim, "ann") == 200
        chef.groups = {"admins": {}}
        while await status(shim, "ann") != 403:
            await trio.sleep(0.01)
        chef.members = []
        while await status(shim, "ann") != 401:
            await trio.sleep(0.01)


@pytest.mark.parametrize("fault", [401, 403, 500])
async def test_server_that_does_not_answer_proves_nothing(chef: ChefDouble, tmp_path: Path, fault: int) -> None:
    async with open_shim(users={}, up=(), chef=chef.settings(tmp_path)) as shim:
        chef.fails_with = fault
        answers: list[int] = []

        async def call(name: str) -> None:
            answers.append(await status(shim, name))

        async with trio.open_nursery() as nursery:
            for name in ("ann", "ann", "ann", "ghost"):
                nursery.start_soon(call, name)
        assert answers == [503] * 4
        chef.fails_with = None
        assert await status(shim, "ann") == 200


async def test_organization_without_the_group_has_no_admins(chef: ChefDouble, tmp_path: Path) -> None:
    chef.groups = {}
    async with open_shim(users={}, up=(), chef=chef.settings(tmp_path)) as shim:
        assert await status(shim, "ann") == 403


async def test_what_is_not_ours_reaches_the_organization_unchanged(chef: ChefDouble, tmp_path: Path) -> None:
    async with open_shim(users={}, up=(), chef=chef.settings(tmp_path)) as shim:
        nodes = await calling(shim, "ann").get(f"/organizations/{ORGANIZATION}/nodes")
        assert (nodes.status, list(nodes.json)) == (200, ["web-1"])
        await calling(shim, "ann").put(f"/organizations/{ORGANIZATION}/nodes/a%20b?x=%2F", {"name": "a b"})
        assert chef.asked[-1] == f"PUT /organizations/{ORGANIZATION}/nodes/a%20b?x=%2F"
        assert chef.bodies[-1] == b'{"name": "a b"}'
        elsewhere = await calling(shim, "ann").get("/organizations/other/nodes")
        assert elsewhere.status == 404
        assert chef.asked[-1] == "GET /organizations/other/nodes"
