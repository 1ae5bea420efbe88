"""Upstream mode and import, against a real goiardi with authentication on."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from lab.chef_client import Answer, ChefClient, ConnectionDropped
from shovey_trio.cli.controller.main import run
from shovey_trio.cli.controller.offline_store import run_with_store
from shovey_trio.core.chef.principals import ChefPrincipal
from shovey_trio.core.chef.signing import SigningVersion, load_private_key
from shovey_trio.core.errors import InvalidRequest
from shovey_trio.core.jobs.model import Node, Role, User
from shovey_trio.core.jobs.search import parse_search
from shovey_trio.demo.fleet import free_port
from shovey_trio.demo.processes import ManagedProcess
from shovey_trio.shovey.kind import KIND
from shovey_trio.store.contract import Store

from .conftest import Shim, open_shim

pytestmark = pytest.mark.goiardi

PROGRAM = shutil.which("goiardi")
HARD_LIMIT = 60.0
EMPTY_NODE = {"automatic": {}, "normal": {}, "default": {}, "override": {}, "run_list": []}


@dataclass(kw_only=True)
class PlainGoiardi:
    """A goiardi without serf, with its data in files."""

    directory: Path
    port: int
    process: ManagedProcess

    @property
    def admin(self) -> ChefClient:
        return self.client("admin", (self.directory / "admin.pem").read_text())

    def client(self, name: str, pem: str) -> ChefClient:
        return ChefClient(port=self.port, user=name, key=load_private_key(pem))

    async def make(self, path: str, body: dict[str, Any]) -> str:
        """Makes something; the private key, if it has one."""
        answer = await self.admin.post(path, body)
        assert answer.status == 201, answer.body
        return str(answer.json.get("private_key", ""))

    @property
    def chef(self) -> dict[str, object]:
        """How the shim is told of it."""
        return {
            "server_url": f"http://127.0.0.1:{self.port}",
            "client_name": "admin",
            "key_file": self.directory / "admin.pem",
        }


@asynccontextmanager
async def open_plain_goiardi(directory: Path) -> AsyncIterator[PlainGoiardi]:
    port = free_port()
    command = [str(PROGRAM), "--ipaddress=127.0.0.1", "--hostname=localhost", f"--port={port}", "--use-auth"]
    command += [f"--conf-root={directory}", f"--data-file={directory / 'data'}", f"--index-file={directory / 'index'}"]
    process = ManagedProcess([*command, "--freeze-interval=1"], log=directory / "goiardi.log")
    try:
        await process.start()
        goiardi = PlainGoiardi(directory=directory, port=port, process=process)
        while True:
            process.check()
            try:
                if (await goiardi.admin.get("/users")).status == 200:
                    break
            except (OSError, ConnectionDropped, InvalidRequest):
                pass  # its keys are still being made
            await trio.sleep(0.1)
        yield goiardi
    finally:
        with trio.CancelScope(deadline=trio.current_time() + 25, shield=True):
            await process.stop()


@pytest.fixture
async def goiardi(tmp_path: Path) -> AsyncIterator[PlainGoiardi]:
    directory = tmp_path / "goiardi"
    directory.mkdir()
    with trio.fail_after(HARD_LIMIT):
        async with open_plain_goiardi(directory) as opened:
            yield opened


def at(shim: Shim, client: ChefClient, **changes: Any) -> ChefClient:
    """The same person, calling the shim."""
    from dataclasses import replace

    return replace(client, port=shim.server.port, **changes)


async def test_keys_and_admin_rights_are_those_of_the_chef_server(goiardi: PlainGoiardi) -> None:
    bob = goiardi.client("bob", await goiardi.make("/users", {"name": "bob", "password": "secret1", "admin": False}))
    web = goiardi.client("web-1", await goiardi.make("/clients", {"name": "web-1", "admin": False}))
    async with open_shim(users={}, up=(), chef=goiardi.chef) as shim:
        for version in SigningVersion:
            assert (await at(shim, goiardi.admin, version=version).get("/shovey/jobs")).json == []
        assert (await at(shim, bob).get("/shovey/jobs")).status == 403
        assert (await at(shim, web).get("/shovey/jobs")).status == 403
        assert (await at(shim, web).get("/shovey/key")).status == 200
        assert (await at(shim, web).put("/shovey/jobs/x/web-1", {"status": "running"})).status == 200
        assert (await at(shim, web).put("/shovey/jobs/x/web-2", {"status": "running"})).status == 403
        stranger = at(shim, web, user="bob")
        assert (await stranger.get("/shovey/jobs")).status == 401
        ghost = await at(shim, web, user="ghost/../admin").get("/shovey/jobs")
        assert (ghost.status, "Failed to authenticate" in ghost.error) == (401, True)


async def test_answers_are_remembered_and_so_is_that_there_is_nobody(goiardi: PlainGoiardi) -> None:
    async with open_shim(users={}, up=(), chef=goiardi.chef) as shim:
        admin = at(shim, goiardi.admin)
        assert (await admin.get("/shovey/jobs")).status == 200
        assert (await at(shim, goiardi.admin, user="ghost").get("/shovey/jobs")).status == 401
        await goiardi.process.stop()
        assert (await admin.get("/shovey/jobs")).status == 200
        assert (await at(shim, goiardi.admin, user="ghost").get("/shovey/jobs")).status == 401
        unknown = await at(shim, goiardi.admin, user="somebody").get("/shovey/jobs")
        assert (unknown.status, unknown.error) == (503, "the Chef server cannot be reached")


async def test_negative_answer_is_forgotten_in_time(goiardi: PlainGoiardi) -> None:
    async with open_shim(users={}, up=(), chef={**goiardi.chef, "negative_cache": 0.01}) as shim:
        assert (await at(shim, goiardi.admin, user="bob").get("/shovey/jobs")).status == 401
        bob = goiardi.client("bob", await goiardi.make("/users", {"name": "bob", "password": "secret1", "admin": True}))
        assert (await at(shim, bob).get("/shovey/jobs")).status == 200


async def test_what_is_not_ours_is_passed_through_unchanged(goiardi: PlainGoiardi) -> None:
    async with open_shim(users={}, up=(), chef=goiardi.chef) as shim:
        through = at(shim, goiardi.admin)
        node = {"name": "web-9", "json_class": "Chef::Node", "chef_type": "node", "chef_environment": "_default"}
        assert (await through.post("/nodes", node | EMPTY_NODE)).status == 201
        for path in ("/nodes/web-9", "/nodes", "/search/node?q=name:web-9&start=0&rows=1000", "/users", "/cookbooks"):
            mine, its = await through.get(path), await goiardi.admin.get(path)
            assert (mine.status, _same(mine), mine.headers["x-goiardi"]) == (its.status, _same(its), "yes")
        assert (await through.request("DELETE", "/nodes/web-9")).status == 200
        assert (await through.get("/nodes/web-9")).status == 404
        assert (await through.request("HEAD", "/users")).body == b""
        spoiled = dict(through.sign("GET", "/users", b"")) | {"X-Ops-Userid": "ghost"}
        assert (await through.send("GET", "/users", b"", spoiled)).status == 401


async def test_body_of_any_size_passes_through(goiardi: PlainGoiardi) -> None:
    large = {"id": "large", "value": "x" * 3_000_000}
    async with open_shim(users={}, up=(), chef=goiardi.chef) as shim:
        through = at(shim, goiardi.admin)
        assert (await through.post("/data", {"name": "bag"})).status == 201
        made = await through.post("/data/bag", large)
        assert made.status == (await goiardi.admin.post("/data/bag", {**large, "id": "other"})).status


async def test_chef_server_that_is_away_is_502_for_what_is_its_own(goiardi: PlainGoiardi) -> None:
    async with open_shim(users={}, up=(), chef=goiardi.chef) as shim:
        await goiardi.process.stop()
        answer = await at(shim, goiardi.admin).get("/cookbooks")
        assert (answer.status, answer.error) == (502, "the Chef server cannot be reached")


async def test_key_that_is_stored_here_goes_before_the_chef_servers(goiardi: PlainGoiardi) -> None:
    async with open_shim(chef=goiardi.chef) as shim:
        assert (await shim.admin.get("/shovey/jobs")).status == 200
        assert (await at(shim, goiardi.admin).get("/shovey/jobs")).status == 401


async def test_export_of_goiardi_is_imported(goiardi: PlainGoiardi, tmp_path: Path) -> None:
    bob_key = await goiardi.make("/users", {"name": "bob", "password": "secret1", "admin": False})
    await goiardi.make("/clients", {"name": "web-1", "admin": False})
    await goiardi.make("/environments", {"name": "prod", "json_class": "Chef::Environment", "chef_type": "environment"})
    node = {"name": "web-1", "json_class": "Chef::Node", "chef_type": "node", "chef_environment": "prod"}
    details = {"normal": {"tags": ["canary"]}, "automatic": {"roles": ["base"]}, "run_list": ["role[web]"]}
    await goiardi.make("/nodes", node | EMPTY_NODE | details)
    export = tmp_path / "export.json"
    # It writes its data when it is told to end.
    await goiardi.process.stop()
    command = [*goiardi.process.command, f"--export={export}"]
    done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False, stdin=b"")
    assert done.returncode == 0, done.stderr

    data = tmp_path / "data"
    assert await trio.to_thread.run_sync(run, ["init", "--data-dir", str(data)]) == 0
    assert await trio.to_thread.run_sync(run, ["import", "goiardi", str(export), "--data-dir", str(data)]) == 0

    async def read(store: Store) -> tuple[list[ChefPrincipal], list[Node], list[User]]:
        users = list(await store.load_users())
        return list(await store.load_chef_principals()), list(await store.load_nodes()), users

    principals, nodes, users = await trio.to_thread.run_sync(run_with_store, data / "store.sqlite3", read)
    assert {(found.principal.label, found.role) for found in principals} == {
        ("user/admin", Role.ADMIN),
        ("user/bob", Role.VIEWER),
        ("node/web-1", Role.NODE),
    }
    public = load_private_key(bob_key).public_key().public_numbers()
    from shovey_trio.core.chef.signing import load_public_key

    (bob,) = (found for found in principals if found.name == "bob")
    assert load_public_key(bob.public_key).public_numbers() == public
    assert {(user.name, user.role) for user in users} == {("admin", Role.ADMIN), ("bob", Role.VIEWER)}
    (web,) = nodes
    assert (web.name, web.link) == ("web-1", KIND)
    assert web.tags == {"canary": "", "roles": "base,web", "chef_environment": "prod"}
    assert parse_search("role:web AND chef_environment:prod AND tags:canary")(web)


def _same(answer: Answer) -> object:
    return json.loads(answer.body) if answer.body else None
