"""The offline commands, in process, against real files and the real store."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from shovey_trio.cli.controller.main import cli, run
from shovey_trio.cli.controller.offline_store import run_with_store
from shovey_trio.config.operator import load_client_settings
from shovey_trio.config.server import load_server_settings
from shovey_trio.core.jobs.model import Role, User
from shovey_trio.core.trust.enrollment import decode_join, token_digest
from shovey_trio.identity.authority import hosts_of, read_certificates
from shovey_trio.identity.layout import ClientDirectory, DataDirectory
from shovey_trio.identity.renewal import verify_certificate
from shovey_trio.store.contract import Store

# Later than any token of these tests, and not by a clock of their own.
ALWAYS = 0.0


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "data"
    assert run(["init", "--data-dir", str(root), "--organization", "acme", "--host", "ctl.example.com"]) == 0
    return root


def use_token(store_path: Path, *, organization: str, node: str, token: str) -> bool:
    async def work(store: Store) -> bool:
        return await store.use_enrollment_token(
            digest=token_digest(token), organization=organization, node=node, now=ALWAYS
        )

    return run_with_store(store_path, work)


def users_of(store_path: Path) -> Sequence[User]:
    async def work(store: Store) -> Sequence[User]:
        return await store.load_users()

    return run_with_store(store_path, work)


def test_init_writes_settings_the_daemon_accepts_and_tells_the_named_host(data: Path) -> None:
    settings = load_server_settings(DataDirectory(data).configuration, environ={})
    assert (settings.server.organization, settings.directory.root) == ("acme", data)
    assert (settings.control_address, settings.enroll_address) == ("ctl.example.com:7443", "ctl.example.com:7444")
    assert settings.server.control_listen == "0.0.0.0:7443"
    assert settings.rest.listen == "0.0.0.0:4545"
    leaf = read_certificates(settings.directory.control.certificate.read_bytes())[0]
    assert "ctl.example.com" in hosts_of(leaf)


def test_init_without_a_host_stays_on_loopback(tmp_path: Path) -> None:
    assert run(["init", "--data-dir", str(tmp_path / "d")]) == 0
    settings = load_server_settings(DataDirectory(tmp_path / "d").configuration, environ={})
    assert settings.server.control_listen == settings.control_address == "127.0.0.1:7443"


def test_init_makes_the_store_with_the_first_admin(data: Path) -> None:
    (admin,) = users_of(DataDirectory(data).store)
    assert (admin.name, admin.organization, admin.role) == ("admin", "acme", Role.ADMIN)


def test_init_makes_a_client_directory_that_loads(data: Path) -> None:
    directory = DataDirectory(data)
    settings = load_client_settings(ClientDirectory(directory.admin).configuration, environ={})
    own = settings.read_certificate()
    assert settings.client.server == "ctl.example.com:7443"
    now = own.leaf.not_valid_before_utc.timestamp() + 1
    verified = verify_certificate(own.chain, authorities=read_certificates(own.ca), revoked=(), now=now)
    assert verified.identity.uri == "shovey://acme/user/admin"


def test_init_again_changes_nothing_and_exits_with_conflict(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = DataDirectory(data).ca_key.read_bytes()
    assert run(["init", "--data-dir", str(data)]) == 5
    assert "is set up already, nothing was changed" in capsys.readouterr().err
    assert DataDirectory(data).ca_key.read_bytes() == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["--organization", "Not Good"],
        ["--admin", "../root"],
        ["--host", "a b"],
        ["--host", "[::1]"],
        ["--host", "näme"],
        ["--control-listen", "nowhere"],
    ],
)
def test_init_with_bad_words_makes_nothing(tmp_path: Path, arguments: list[str]) -> None:
    assert run(["init", "--data-dir", str(tmp_path / "d"), *arguments]) == 2
    assert not (tmp_path / "d").exists()


def test_a_token_is_printed_with_its_command_and_works_once_for_its_node(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert run(["node", "token", "web-1", "--data-dir", str(data)]) == 0
    out = capsys.readouterr().out
    agent, command, join = out.split()
    ticket = decode_join(join)
    assert (agent, command) == ("shovey-agent", "enroll")
    assert (ticket.organization, ticket.node, ticket.enroll_address) == ("acme", "web-1", "ctl.example.com:7444")
    assert b"-----BEGIN" not in ticket.ca_certificate
    store = DataDirectory(data).store
    assert not use_token(store, organization="acme", node="web-2", token=ticket.token)
    assert use_token(store, organization="acme", node="web-1", token=ticket.token)
    assert not use_token(store, organization="acme", node="web-1", token=ticket.token)


def test_two_tokens_are_never_the_same(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    for _ in range(2):
        assert run(["node", "token", "-q", "web-1", "--data-dir", str(data)]) == 0
    first, second = capsys.readouterr().out.split()
    assert decode_join(first).secret != decode_join(second).secret


@pytest.mark.parametrize("valid_for", ["0", "31d", "soon", "-1h"])
def test_a_token_lives_neither_never_nor_for_ever(data: Path, valid_for: str) -> None:
    assert run(["node", "token", "web-1", "--valid-for", valid_for, "--data-dir", str(data)]) == 2


def test_a_token_for_no_name_is_a_usage_error(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["node", "token", "../etc", "--data-dir", str(data)]) == 2
    assert "node name" in capsys.readouterr().err


def test_a_certificate_makes_the_user_and_a_client_directory(data: Path, tmp_path: Path) -> None:
    assert run(["user", "cert", "bob", "--role", "viewer", "--data-dir", str(data)]) == 0
    known = {user.name: user.role for user in users_of(DataDirectory(data).store)}
    assert known == {"admin": Role.ADMIN, "bob": Role.VIEWER}
    client = ClientDirectory(tmp_path / "shovey-bob")
    assert client.root.stat().st_mode & 0o7777 == 0o700
    assert client.identity.key.stat().st_mode & 0o7777 == 0o600
    leaf = read_certificates(client.identity.certificate.read_bytes())[0]
    ca = read_certificates(client.ca_certificate.read_bytes())
    now = leaf.not_valid_before_utc.timestamp() + 1
    identity = verify_certificate(
        client.identity.certificate.read_bytes(), authorities=ca, revoked=(), now=now
    ).identity
    assert identity.uri == "shovey://acme/user/bob"


def test_a_second_certificate_changes_the_role_and_says_so(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["user", "cert", "bob", "--role", "viewer", "--data-dir", str(data), "--out", "one"]) == 0
    (before,) = [user for user in users_of(DataDirectory(data).store) if user.name == "bob"]
    assert run(["user", "cert", "bob", "--role", "operator", "--data-dir", str(data), "--out", "two"]) == 0
    (after,) = [user for user in users_of(DataDirectory(data).store) if user.name == "bob"]
    assert (after.role, after.created_at) == (Role.OPERATOR, before.created_at)
    assert "user/bob was viewer and is operator now" in capsys.readouterr().err


def test_an_existing_client_directory_is_kept_and_the_user_not_made(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "client.key").write_text("mine")
    code = run(["user", "cert", "bob", "--role", "viewer", "--data-dir", str(data), "--out", str(tmp_path / "out")])
    assert code == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert [user.name for user in users_of(DataDirectory(data).store)] == ["admin"]


@pytest.mark.parametrize("command", [["node", "token", "web-1"], ["user", "cert", "bob", "--role", "viewer"]])
def test_keys_open_to_others_stop_a_command_and_are_named(
    data: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    data.chmod(0o755)
    assert run([*command, "--data-dir", str(data)]) == 2
    assert f"{data} has mode 0755" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["node", "token", "web-1"], ["user", "cert", "bob", "--role", "viewer"]])
def test_a_missing_set_up_is_one_line_and_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run([*command, "--data-dir", str(tmp_path / "none")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_bad_settings_stop_serve_before_anything_is_loaded(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["serve", "--data-dir", str(data), "--set", "jobs.kill_grase=1", "--set", "log.level=loud"])
    assert code == 2
    err = capsys.readouterr().err
    assert "2 errors" in err
    assert "did you mean jobs.kill_grace?" in err


def test_an_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["frobnicate"]) == 2
    assert "No such command" in capsys.readouterr().err


def test_every_command_of_the_table_can_be_imported_and_summarizes_itself() -> None:
    import click

    ctx = click.Context(cli)
    for name in cli.list_commands(ctx):
        command = cli.get_command(ctx, name)
        assert command is not None
        assert command.name == name
        assert command.help


def test_help_imports_neither_the_daemon_nor_its_libraries() -> None:
    program = (
        "import sys; from shovey_trio.cli.controller.main import run; code = run(['--help']);"
        "heavy = {'grpc', 'sqlalchemy', 'pydantic', 'cryptography', 'trio'} & set(sys.modules); sys.exit(heavy or code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "doctor" in done.stdout
