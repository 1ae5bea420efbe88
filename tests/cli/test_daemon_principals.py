"""``shovey-trio org|user|node add|list|remove``: who there is, per organization."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from lab.chef_client import make_key, public_pem
from shovey_trio.chef.callers import StoredChefCallers
from shovey_trio.cli.controller.main import run
from shovey_trio.cli.controller.offline_store import run_with_store
from shovey_trio.core.ids import job_id, run_id
from shovey_trio.core.jobs.model import Job, Role, Run
from shovey_trio.core.jobs.states import RunState
from shovey_trio.identity.layout import DataDirectory
from shovey_trio.identity.signing_keys import SigningKeyFile
from shovey_trio.nursery.clock import WallClock
from shovey_trio.shovey.keys import SCHOB_KEYS
from shovey_trio.store.contract import Store

T = TypeVar("T")
NOW = 1_800_000_000.0
JOB = Job(
    id=job_id(NOW, bytes(10)),
    organization="acme",
    command="true",
    quorum="100%",
    run_timeout=60.0,
    kill_grace=10.0,
    created_by="user/bob",
    created_at=NOW,
    updated_at=NOW,
    run_total=1,
)
RUN = Run(
    id=run_id(JOB.id, "web-1"),
    job_id=JOB.id,
    organization="acme",
    node="web-1",
    created_at=NOW,
    updated_at=NOW,
    nonce=bytes(16),
)


class Commands:
    """The command line of one data directory."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory = DataDirectory(root)
        self._capsys = capsys

    def __call__(self, *words: str, exit_code: int = 0) -> str:
        self._capsys.readouterr()
        assert run([*words, "--data-dir", str(self.directory.root)]) == exit_code
        out, err = self._capsys.readouterr()
        return err if exit_code else out

    def rows(self, *words: str) -> list[list[str]]:
        """A table's cells, without its header."""
        return [re.split(r" {2,}", line) for line in self(*words).splitlines()[1:]]

    def store(self, work: Callable[[Store], Awaitable[T]]) -> T:
        return run_with_store(self.directory.store, work)


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.chdir(tmp_path)
    commands = Commands(tmp_path / "data", capsys)
    commands("init")
    return commands


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("keys") / "some.pub"
    file.write_text(public_pem(make_key()))
    return str(file)


# -- organizations


def test_new_organization_has_keys_of_its_own_and_is_listed(cli: Commands) -> None:
    cli("org", "add", "acme")
    assert cli.rows("org", "list") == [["acme", "0", "0", "-"], ["default", "1", "0", "yes"]]
    own, acme = (SigningKeyFile(cli.directory.signing_keys(name)).load(name) for name in ("default", "acme"))
    assert own.active.key_id != acme.active.key_id
    old, new = (SCHOB_KEYS.file_of(cli.directory, name).load(name) for name in ("default", "acme"))
    assert old.current.key_id != new.current.key_id
    assert cli("legacy", "key", "status", "--pem", "--org", "acme") == new.current.public_pem


@pytest.mark.parametrize("name", ["default", "Upper", "a.b", "../x", ""])
def test_organization_that_cannot_be_made_is_refused(cli: Commands, name: str) -> None:
    cli("org", "add", name, exit_code=2)
    assert cli("org", "list", "-o", "name") == "default\n"


def test_organizations_do_not_share_names(cli: Commands, key_file: str) -> None:
    cli("org", "add", "acme")
    cli("user", "add", "bob", "--role", "viewer")
    cli("user", "cert", "bob", "--role", "admin", "--org", "acme")
    cli("node", "add", "web-1", "--legacy", "--public-key", key_file, "--org", "acme")
    assert cli.rows("user", "list") == [["admin", "admin", "-"], ["bob", "viewer", "-"]]
    assert cli.rows("user", "list", "--org", "acme") == [["bob", "admin", "-"]]
    assert cli("node", "list") == ""
    [row] = cli.rows("node", "list", "--org", "acme")
    assert row[:3] == ["web-1", "legacy", "new"]
    cli("user", "list", "--org", "elsewhere", exit_code=3)


def test_removed_organization_leaves_nothing_that_can_call(cli: Commands, key_file: str) -> None:
    cli("org", "add", "acme")
    cli("user", "cert", "bob", "--role", "operator", "--org", "acme")
    cli("user", "key", "bob", key_file, "--org", "acme")
    cli("user", "grant", "bob", "--command", "*", "--nodes", "*", "--org", "acme")
    cli("node", "add", "web-1", "--legacy", "--public-key", key_file, "--org", "acme")
    assert "1 users, 1 nodes" in cli("org", "remove", "acme")

    async def left(store: Store) -> None:
        assert [user.organization for user in await store.load_users()] == ["default"]
        assert (await store.load_nodes(), await store.load_chef_principals()) == ((), ())
        assert await store.load_grants("acme", "bob") == ()
        assert len(await store.revoked_serials()) == 1

    cli.store(left)
    assert not list(cli.directory.signing_keys("acme").parent.glob("acme*"))
    assert cli("org", "list", "-o", "name") == "default\n"
    cli("org", "remove", "acme", exit_code=3)


def test_controllers_own_organization_cannot_be_removed(cli: Commands) -> None:
    cli("org", "remove", "default", "--force", exit_code=2)
    assert cli("user", "list", "-o", "name") == "admin\n"


def test_organization_with_an_unfinished_job_is_removed_by_force_alone(cli: Commands) -> None:
    cli("org", "add", "acme")
    cli("node", "add", "web-1", "--legacy", "--org", "acme")
    cli.store(lambda store: store.create_job(JOB, [RUN], None))
    assert JOB.id in cli("org", "remove", "acme", exit_code=5)
    assert cli("node", "list", "--org", "acme") != ""
    cli("org", "remove", "acme", "--force")
    assert cli("org", "list", "-o", "name") == "default\n"


# -- users


def test_user_is_made_once_listed_and_removed_with_everything(cli: Commands, key_file: str) -> None:
    cli("user", "add", "alice", "--role", "operator", "--public-key", key_file)
    assert "operator" in cli("user", "add", "alice", "--role", "admin", exit_code=2)
    cli("user", "cert", "alice", "--role", "operator")
    assert cli.rows("user", "list")[1][:2] == ["alice", "operator"]
    said = cli("user", "remove", "alice")
    assert "1 certificate is void" in said
    assert "no Chef key" in said
    assert cli("user", "list", "-o", "name") == "admin\n"
    assert cli("user", "keys") == ""
    cli("user", "remove", "alice", exit_code=3)


def test_role_of_a_user_is_one_for_knife_and_grpc(cli: Commands, key_file: str) -> None:
    def role_at_the_shim() -> Role:
        async def look(store: Store) -> Role:
            (caller,) = await StoredChefCallers(store=store, clock=WallClock()).find("default", "alice")
            return caller.principal.role

        return cli.store(look)

    cli("user", "key", "alice", key_file, "--role", "operator")
    # A key alone makes a user: grants and certificates are for the same one.
    cli("user", "grant", "alice", "--command", "chef-*", "--nodes", "*")
    assert role_at_the_shim() is Role.OPERATOR
    cli("user", "cert", "alice", "--role", "viewer")
    assert role_at_the_shim() is Role.VIEWER
    cli("user", "key", "alice", key_file)
    assert role_at_the_shim() is Role.VIEWER
    cli("user", "key", "alice", key_file, "--role", "admin")
    assert cli.rows("user", "list")[1][:2] == ["alice", "admin"]


# -- nodes


def test_node_is_listed_and_removed_and_does_not_come_back_by_a_late_word(cli: Commands, key_file: str) -> None:
    cli("node", "add", "web-1", "--legacy", "--public-key", key_file)
    (known,) = cli.store(lambda store: store.load_nodes())
    assert "no Chef key" in cli("node", "remove", "web-1")
    # What a daemon beside it still has to say of the node.
    cli.store(lambda store: store.write_node(replace(known, presence_reason="heartbeat"), only_known=True))
    assert cli("node", "list") == ""
    assert cli("node", "keys") == ""
    cli("node", "remove", "web-1", exit_code=3)


def test_node_with_an_unfinished_run_is_removed_by_force_alone(cli: Commands) -> None:
    cli("node", "add", "web-1", "--legacy")
    cli("node", "add", "web-2", "--legacy")
    job = replace(JOB, organization="default", run_total=2)
    runs = [
        replace(RUN, organization="default"),
        replace(RUN, organization="default", id=run_id(JOB.id, "web-2"), node="web-2", state=RunState.NACKED),
    ]
    cli.store(lambda store: store.create_job(job, runs, None))
    cli("node", "remove", "web-2")
    assert job.id in cli("node", "remove", "web-1", exit_code=5)
    assert "crashed" in cli("node", "remove", "web-1", "--force")


def test_grants_of_one_organization_are_not_anothers(cli: Commands) -> None:
    cli("org", "add", "acme")
    cli("user", "add", "bob", "--role", "operator", "--org", "acme")
    cli("user", "grant", "bob", "--command", "*", "--nodes", "*", "--org", "acme")

    async def read(store: Store) -> tuple[int, int]:
        return len(await store.load_grants("acme", "bob")), len(await store.load_grants("default", "bob"))

    assert cli.store(read) == (1, 0)


# -- listings


def test_lists_have_headers_and_are_for_programs_too(cli: Commands, key_file: str) -> None:
    cli("user", "add", "bob", "--role", "operator", "--public-key", key_file)
    cli("user", "grant", "bob", "--command", "chef-*", "--nodes", "role=web")
    assert cli("user", "list").splitlines()[0].split("  ")[0] == "NAME"
    [_, bob] = json.loads(cli("user", "list", "-o", "json"))
    assert (bob["name"], bob["role"], len(bob["chef_keys"])) == ("bob", "operator", 1)
    assert cli("user", "keys", "-o", "name") == "bob\n"
    assert json.loads(cli("user", "grants", "bob", "-o", "jsonl")) == {"command": "chef-*", "nodes": "role=web"}
    [key, root] = json.loads(cli("key", "list", "-o", "json"))
    assert (key["state"], key["until"], root["state"], root["place"]) == ("active", None, "root", "here")
    cli("node", "add", "old-1", "--legacy")
    cli("legacy", "key", "reset")
    current, old = json.loads(cli("legacy", "key", "status", "-o", "json"))
    assert (current["state"], current["nodes"], old["to_be_moved"]) == ("current", 0, ["old-1"])


def test_empty_list_is_no_output_for_people_and_an_empty_one_for_programs(cli: Commands) -> None:
    assert cli("node", "list") == ""
    assert cli("node", "list", "-o", "json") == "[]\n"
