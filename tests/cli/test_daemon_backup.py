"""``shovey-trio backup`` and ``restore``, and everything that goes wrong on the way."""

from __future__ import annotations

import os
import random
import resource
import signal
import sqlite3
import stat
import subprocess
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import trio

from shovey_trio.cli.controller.main import run
from shovey_trio.cli.controller.offline_store import run_with_store
from shovey_trio.controller.backup import BackupUnusable, open_backup
from shovey_trio.core.errors import Exit
from shovey_trio.demo.processes import program
from shovey_trio.identity.layout import DataDirectory
from shovey_trio.store.contract import Store
from shovey_trio.store.opening import open_store

MiB = 1024 * 1024


def command(*words: str, at: DataDirectory, **options: object) -> subprocess.CompletedProcess[str]:
    """``shovey-trio`` in a process of its own."""
    line = [*program("shovey-trio"), *words, "--data-dir", str(at.root)]
    return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False, **options)  # type: ignore[call-overload, no-any-return]


def contents(directory: Path) -> dict[Path, bytes]:
    """Every file but the locks, which hold nothing."""
    found = (path for path in directory.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path.relative_to(directory): path.read_bytes() for path in found}


def users(data: DataDirectory) -> list[str]:
    async def read(store: Store) -> list[str]:
        return [user.name for user in await store.load_users()]

    return run_with_store(data.store, read)


def add_user(data: DataDirectory, name: str) -> None:
    out = data.root.parent / name
    assert run(["user", "cert", name, "--role", "viewer", "--out", str(out), "--data-dir", str(data.root)]) == 0


@pytest.fixture
def data(tmp_path: Path) -> DataDirectory:
    directory = DataDirectory(tmp_path / "data")
    assert run(["init", "--data-dir", str(directory.root)]) == 0
    return directory


@pytest.fixture
def made(data: DataDirectory, tmp_path: Path) -> Path:
    """A backup."""
    assert run(["backup", str(tmp_path / "copy.backup"), "--data-dir", str(data.root)]) == 0
    return tmp_path / "copy.backup"


def test_backup_is_closed_to_others_and_leaves_nothing_else(made: Path, tmp_path: Path) -> None:
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.backup", "data"]


def test_backup_never_goes_over_a_file(data: DataDirectory, made: Path) -> None:
    before = made.read_bytes()
    assert run(["backup", str(made), "--data-dir", str(data.root)]) == Exit.CONFLICT.value
    assert made.read_bytes() == before


def test_backup_that_finds_no_room_leaves_nothing(data: DataDirectory, tmp_path: Path) -> None:
    def little_room() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (MiB // 16, MiB // 16))

    target = tmp_path / "room" / "copy.backup"
    target.parent.mkdir()
    ended = command("backup", str(target), at=data, preexec_fn=little_room)
    assert ended.returncode != 0
    assert "Traceback" not in ended.stderr
    assert list(target.parent.iterdir()) == []


def test_restore_on_a_new_host_brings_back_everything(data: DataDirectory, made: Path, tmp_path: Path) -> None:
    before = contents(data.root)
    elsewhere = DataDirectory(tmp_path / "elsewhere")
    assert run(["restore", str(made), "--data-dir", str(elsewhere.root)]) == 0
    after = contents(elsewhere.root)
    assert {name for name in before if after.get(name) != before[name]} == {Path("store.sqlite3")}
    assert users(elsewhere) == ["admin"]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in elsewhere.private_paths()}
    assert modes == {0o600, 0o700}


def test_restore_keeps_the_store_that_was_there_and_the_keys(
    data: DataDirectory, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_user(data, "bob")
    assert run(["key", "rotate", "--data-dir", str(data.root)]) == 0
    keys = data.signing_keys("default").read_bytes()
    assert run(["restore", str(made), "--data-dir", str(data.root)]) == 0
    assert users(data) == ["admin"]
    assert data.signing_keys("default").read_bytes() == keys
    [aside] = data.root.glob("store.sqlite3.replaced-*[0-9]")
    assert str(aside) in capsys.readouterr().out
    with closing(sqlite3.connect(aside)) as connection:
        assert connection.execute("SELECT name FROM users ORDER BY name").fetchall() == [("admin",), ("bob",)]


def test_root_key_that_was_moved_away_is_not_brought_back(data: DataDirectory, made: Path, tmp_path: Path) -> None:
    assert run(["key", "root", "export", str(tmp_path / "root.key"), "--data-dir", str(data.root)]) == 0
    assert run(["restore", str(made), "--data-dir", str(data.root)]) == 0
    assert not data.root_key("default").exists()


def test_restore_works_where_the_store_is_gone_or_damaged(data: DataDirectory, made: Path) -> None:
    for damage in (data.store.unlink, lambda: data.store.write_bytes(b"\0" * 8192)):
        damage()
        assert run(["restore", str(made), "--data-dir", str(data.root)]) == 0
        assert users(data) == ["admin"]


def test_restore_is_refused_while_the_store_is_served(data: DataDirectory, made: Path) -> None:
    async def refused() -> None:
        async with open_store(data.store):
            before = contents(data.root)
            ended = await trio.to_thread.run_sync(lambda: command("restore", str(made), at=data))
            assert ended.returncode == Exit.BUSY.value
            assert "served by another process" in ended.stderr
            assert contents(data.root) == before

    trio.run(refused)


def test_restore_by_another_account_than_the_owner_is_refused_and_says_who_must(
    data: DataDirectory, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(data.root)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert run(["restore", str(made), "--data-dir", str(data.root)]) == Exit.USAGE.value
    assert "belongs to" in capsys.readouterr().err
    assert contents(data.root) == before


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize(
    "spoil", [lambda data: data[:-1000], flipped, lambda data: b"", lambda data: b"SQLite format 3\0" * 100]
)
def test_wrong_or_damaged_file_is_refused_and_nothing_is_changed(
    data: DataDirectory, made: Path, spoil: Callable[[bytes], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    made.write_bytes(spoil(made.read_bytes()))
    before = contents(data.root)
    assert run(["restore", str(made), "--data-dir", str(data.root)]) == Exit.USAGE.value
    assert "BACKUP_UNUSABLE" in capsys.readouterr().err
    assert contents(data.root) == before


def test_archive_that_is_somebody_elses_is_refused(data: DataDirectory, tmp_path: Path) -> None:
    for names in ({"x": "x"}, {"shovey-trio-backup.json": "{}"}, {"shovey-trio-backup.json": "[1"}):
        file = tmp_path / "other.zip"
        with zipfile.ZipFile(file, "w") as archive:
            for name, text in names.items():
                archive.writestr(name, text)
        assert run(["restore", str(file), "--data-dir", str(data.root)]) == Exit.USAGE.value


def test_restore_that_finds_no_room_leaves_the_store_that_was_there(
    data: DataDirectory, made: Path, tmp_path: Path
) -> None:
    before = contents(data.root)
    plan = tmp_path / "plan"
    plan.write_text("restore.ready error ENOSPC\n")
    ended = command("restore", str(made), at=data, env={**os.environ, "SHOVEY_FAILPOINTS": str(plan)})
    assert ended.returncode == Exit.INTERNAL.value
    assert "No space left on device" in ended.stderr
    assert contents(data.root) == before


@pytest.mark.parametrize("point", ["ready", "aside", "placed"])
@pytest.mark.parametrize("where", ["data", "elsewhere"])
def test_restore_that_was_killed_is_done_again(
    data: DataDirectory, made: Path, tmp_path: Path, point: str, where: str
) -> None:
    at = DataDirectory(tmp_path / where)
    if where == "data":
        add_user(data, "bob")
    plan = tmp_path / "plan"
    plan.write_text(f"restore.{point} crash\n")
    killed = command("restore", str(made), at=at, env={**os.environ, "SHOVEY_FAILPOINTS": str(plan)})
    assert killed.returncode == -signal.SIGKILL
    assert run(["restore", str(made), "--data-dir", str(at.root)]) == 0
    assert users(at) == ["admin"]
    assert not list(at.root.glob(".restore-*"))


def test_no_change_of_a_byte_makes_a_backup_of_garbage(made: Path, tmp_path: Path) -> None:
    whole, changed = made.read_bytes(), tmp_path / "changed"
    with open_backup(made) as (backup, _):
        pass
    chosen = random.Random(1)  # the same every time
    for _ in range(200):
        place = chosen.randrange(len(whole))
        changed.write_bytes(whole[:place] + bytes([chosen.randrange(256)]) + whole[place + 1 :])
        try:
            with open_backup(changed) as (found, _):
                assert found == backup
        except BackupUnusable:
            pass
