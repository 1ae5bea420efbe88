"""What a controller does with a store that is not the one it left."""

from __future__ import annotations

import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
import trio

from shovey_trio.application.audit_anchor import open_anchor
from shovey_trio.cli.controller.main import run
from shovey_trio.core.errors import Exit
from shovey_trio.demo.processes import program
from shovey_trio.identity.audit_files import AuditFiles
from shovey_trio.identity.layout import DataDirectory
from shovey_trio.nursery.clock import WallClock
from shovey_trio.store.opening import open_store


@pytest.fixture
def data(tmp_path: Path) -> DataDirectory:
    """A data directory whose log is signed."""
    directory = DataDirectory(tmp_path / "data")
    assert run(["init", "--data-dir", str(directory.root)]) == 0
    assert run(["node", "token", "web-1", "--data-dir", str(directory.root)]) == 0

    async def sign() -> None:
        async with open_store(directory.store) as store:
            anchor = await open_anchor(store=store, file=AuditFiles(directory), clock=WallClock())
            await anchor.sign()

    trio.run(sign)
    return directory


def serve(data: DataDirectory, *words: str) -> subprocess.CompletedProcess[str]:
    """A daemon in a process of its own; one that goes on serving fails the test."""
    listen = [word for name in ("control", "enroll") for word in ("--set", f"server.{name}_listen=127.0.0.1:0")]
    command = [*program("shovey-trio"), "serve", "--data-dir", str(data.root), *listen, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def contents(data: DataDirectory) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in data.root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("emptied", [True, False])
def test_empty_or_missing_store_beside_a_signed_head_stops_the_start_and_nothing_is_changed(
    data: DataDirectory, emptied: bool
) -> None:
    data.store.unlink()
    if emptied:
        data.store.touch(mode=0o600)
    before = contents(data)
    ended = serve(data)
    assert ended.returncode == Exit.INTERNAL.value
    assert ("store.sqlite3 is empty" if emptied else "store.sqlite3 is missing") in ended.stderr
    assert "Traceback" not in ended.stderr
    assert contents(data) == before


def test_doctor_says_that_the_store_is_an_older_copy(
    data: DataDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older = data.store.read_bytes()
    made = run(
        ["user", "cert", "bob", "--role", "viewer", "--out", str(tmp_path / "bob"), "--data-dir", str(data.root)]
    )
    assert made == 0
    data.store.write_bytes(older)
    capsys.readouterr()
    assert run(["doctor", "--data-dir", str(data.root)]) == 1
    assert "start once with --restored" in " ".join(capsys.readouterr().out.split())


def test_missing_table_stops_the_start_by_name(data: DataDirectory) -> None:
    with closing(sqlite3.connect(data.store)) as connection, connection:
        connection.execute("DROP TABLE certificates")
    ended = serve(data)
    assert ended.returncode == Exit.INTERNAL.value
    assert "it has no table certificates" in ended.stderr
