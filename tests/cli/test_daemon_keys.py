"""``shovey-trio key …`` and ``… revoke``: keys and certificates are changed beside a daemon, or without one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shovey_trio.cli.controller.main import run
from shovey_trio.cli.controller.offline_store import run_with_store
from shovey_trio.core.audit.records import AuditAction
from shovey_trio.core.trust.enrollment import decode_join
from shovey_trio.core.trust.key_sets import KeyState, decode_key_set
from shovey_trio.core.trust.orders import RefusalReason
from shovey_trio.identity.files import write_secret
from shovey_trio.identity.layout import DataDirectory
from shovey_trio.identity.root_keys import KeyRing, load_root_key, root_key_pem
from shovey_trio.store.contract import Store

T = TypeVar("T")
_LATER = 10_000_000_000.0


class Commands:
    """The command line of one data directory."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory = DataDirectory(root)
        self.ring = KeyRing(self.directory, "default")
        self._capsys = capsys

    def __call__(self, *words: str, exit_code: int = 0, data_dir: bool = True) -> str:
        self._capsys.readouterr()
        where = ["--data-dir", str(self.directory.root)] if data_dir else []
        assert run([*words, *where]) == exit_code
        out, err = self._capsys.readouterr()
        return err if exit_code else out

    def store(self, work: Callable[[Store], Awaitable[T]]) -> T:
        return run_with_store(self.directory.store, work)


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.chdir(tmp_path)
    commands = Commands(tmp_path / "data", capsys)
    commands("init")
    return commands


def test_a_rotation_is_one_command(cli: Commands) -> None:
    before = cli.ring.load().active.key_id
    cli("key", "rotate", "--overlap", "1h")
    keys = cli.ring.load()
    rows = [line.split()[:2] for line in cli("key", "list").splitlines()[1:]]
    assert rows[:2] == [[keys.active.key_id, "active"], [before, "retiring"]]
    assert [row[1] for row in rows[2:]] == ["root"]
    old = keys.keys.keys[1]
    assert old.not_after == keys.keys.keys[0].not_before + 3600


@pytest.mark.parametrize("overlap", ["1m", "31d", "soon"])
def test_an_overlap_that_would_fail_orders_or_never_end_is_refused(cli: Commands, overlap: str) -> None:
    before = cli.ring.load().published()
    assert "overlap" in cli("key", "rotate", "--overlap", overlap, exit_code=2)
    assert cli.ring.load().published() == before


def test_a_revoked_key_is_replaced_and_named_for_what_it_is(cli: Commands) -> None:
    stolen = cli.ring.load().active.key_id
    cli("key", "revoke", stolen)
    keys = cli.ring.load()
    assert keys.keys.find(stolen, _LATER) is RefusalReason.REVOKED_KEY
    assert f"{stolen}  revoked" in cli("key", "list")
    assert "revoked already" in cli("key", "revoke", stolen, exit_code=2)
    assert cli("key", "revoke", "0" * 16, exit_code=3)


def test_every_change_of_keys_is_in_the_audit_log(cli: Commands) -> None:
    cli("key", "rotate")
    key_id = cli.ring.load().active.key_id

    async def read(store: Store) -> list[str]:
        return [record.body for record in await store.read_audit(after_seq=0, limit=1000)]

    records = [body for body in cli.store(read) if AuditAction.KEYS_CHANGED.value in body]
    assert any(key_id in body for body in records)


def test_with_the_root_key_elsewhere_a_change_takes_its_signature(cli: Commands, tmp_path: Path) -> None:
    away = tmp_path / "usb.key"
    cli("key", "root", "export", str(away))
    assert away.stat().st_mode & 0o777 == 0o600
    assert not cli.ring.root_key_path.exists()
    assert "kept elsewhere" in cli("key", "list")
    before = cli.ring.load()
    assert "key import" in cli("key", "rotate", exit_code=5)
    cli("key", "revoke", before.active.key_id, "--out", "proposal")
    assert cli.ring.load().published() == before.published()
    # On the other machine, where there is no data directory.
    cli("key", "root", "sign", "proposal", "--key", str(away), "--out", "signed", "--yes", data_dir=False)
    cli("key", "import", "signed")
    after = cli.ring.load()
    assert after.keys == decode_key_set(Path("proposal").read_bytes())
    assert after.keys.find(before.active.key_id, _LATER) is RefusalReason.REVOKED_KEY
    assert cli("key", "import", "signed", exit_code=4)  # once


def test_a_copy_of_the_root_key_leaves_it_where_it_is(cli: Commands) -> None:
    cli("key", "root", "export", "copy.key", "--keep")
    root = load_root_key(cli.ring.root_key_path)
    assert load_root_key(Path("copy.key")).private_bytes_raw() == root.private_bytes_raw()
    assert "exists" in cli("key", "root", "export", "copy.key", exit_code=2)


def test_somebody_elses_root_key_signs_nothing_that_is_believed(cli: Commands) -> None:
    before = cli.ring.load().published()
    write_secret(Path("theirs.key"), root_key_pem(Ed25519PrivateKey.generate()))
    cli("key", "rotate", "--out", "proposal")
    cli("key", "root", "sign", "proposal", "--key", "theirs.key", "--out", "signed", "--yes", data_dir=False)
    cli("key", "import", "signed", exit_code=4)
    assert cli.ring.load().published() == before


def test_a_root_key_that_others_can_read_is_not_used(cli: Commands) -> None:
    cli.ring.root_key_path.chmod(0o644)
    assert "0644" in cli("key", "rotate", exit_code=2)


def test_nothing_is_signed_unasked(cli: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    cli("key", "rotate", "--out", "proposal")
    answers = iter(["n"])
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _: next(answers))
    root = str(cli.ring.root_key_path)
    cli("key", "root", "sign", "proposal", "--key", root, "--out", "signed", exit_code=130, data_dir=False)
    assert not Path("signed").exists()


def test_each_organization_has_keys_of_its_own(cli: Commands) -> None:
    cli("org", "add", "acme")
    before = cli.ring.load().published()
    cli("key", "rotate", "--org", "acme")
    acme = KeyRing(cli.directory, "acme").load()
    assert [key.state for key in acme.keys.keys] == [KeyState.ACTIVE, KeyState.RETIRING]
    assert cli.ring.load().published() == before


def test_a_join_string_vouches_for_the_root_key(cli: Commands) -> None:
    ticket = decode_join(cli("node", "token", "web-1", "--quiet"))
    assert ticket.root_public_key == cli.ring.load().root_public_key


def test_revoking_a_user_voids_certificates_and_leaves_the_user(cli: Commands) -> None:
    cli("user", "cert", "ada", "--role", "viewer")
    before = cli.directory.changed.stat().st_mtime_ns if cli.directory.changed.exists() else 0
    assert "1 certificate is void" in cli("user", "revoke", "ada")
    assert cli.directory.changed.stat().st_mtime_ns > before
    assert ["ada", "viewer", "-"] in [line.split() for line in cli("user", "list").splitlines()]

    async def revoked(store: Store) -> int:
        return len(await store.revoked_serials())

    assert cli.store(revoked) == 1
    assert cli("node", "revoke", "nobody", exit_code=3)
