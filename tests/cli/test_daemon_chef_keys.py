"""``shovey-trio user|node key``: who may call the REST shim."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from lab.chef_client import make_key, public_pem
from shovey_trio.cli.controller.main import run
from shovey_trio.core.chef.keys import read_chef_keys


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    directory = str(tmp_path / "data")
    assert run(["init", "--data-dir", directory]) == 0
    return ["--data-dir", directory]


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    file = tmp_path / "alice.pub"
    file.write_text(public_pem(make_key()))
    return str(file)


def id_of(key_file: str) -> str:
    (key,) = read_chef_keys(Path(key_file).read_text())
    return key.key_id


def test_key_is_added_listed_kept_with_its_role_and_removed(
    data: list[str], key_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["user", "key", "alice", key_file, "--role", "operator", *data]) == 0
    assert run(["user", "key", "alice", key_file, *data]) == 0
    assert run(["node", "key", "web-1", key_file, *data]) == 0
    capsys.readouterr()
    key_id = id_of(key_file)
    assert run(["user", "keys", *data]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["alice", "operator", key_id]
    assert run(["node", "keys", *data]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["web-1", "node", key_id]
    assert run(["user", "remove-key", "alice", *data]) == 0
    capsys.readouterr()
    assert run(["user", "keys", *data]) == 0
    assert capsys.readouterr().out == ""


def test_new_key_holds_beside_the_old_one_until_that_is_taken_away(
    data: list[str], key_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["user", "key", "alice", key_file, "--role", "operator", *data]) == 0
    fresh = public_pem(make_key())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(fresh.encode())))
    assert run(["user", "key", "alice", "-", *data]) == 0
    (new_id,) = (key.key_id for key in read_chef_keys(fresh))
    capsys.readouterr()
    assert run(["user", "keys", *data]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["alice", "operator", f"{id_of(key_file)},{new_id}"]
    assert run(["user", "remove-key", "alice", "0123456789abcdef", *data]) == 3
    assert run(["user", "remove-key", "alice", id_of(key_file), *data]) == 0
    capsys.readouterr()
    assert run(["user", "keys", *data]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["alice", "operator", new_id]
    third = tmp_path / "third.pub"
    third.write_text(public_pem(make_key()))
    assert run(["user", "key", "alice", str(third), "--only", *data]) == 0
    capsys.readouterr()
    assert run(["user", "keys", *data]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["alice", "operator", id_of(str(third))]


def test_new_user_needs_a_role(data: list[str], key_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["user", "key", "alice", key_file, *data]) == 2
    assert "role" in capsys.readouterr().err


def test_file_that_is_no_key_is_refused(data: list[str], tmp_path: Path) -> None:
    (tmp_path / "no.pub").write_text("ssh-ed25519 AAAA")
    assert run(["node", "key", "web-1", str(tmp_path / "no.pub"), *data]) == 2


def test_name_that_no_principal_can_have_is_refused(data: list[str], key_file: str) -> None:
    assert run(["node", "key", "a/b", key_file, *data]) == 2


def test_removing_a_key_that_is_not_there_is_not_found(data: list[str]) -> None:
    assert run(["user", "remove-key", "nobody", *data]) == 3
