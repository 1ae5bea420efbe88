"""``shovey-trio store check`` reads everything, names what is damaged and changes nothing."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import trio

from shovey_trio.cli.controller.main import run
from shovey_trio.core.errors import Exit
from shovey_trio.identity.layout import DataDirectory
from shovey_trio.store.opening import open_store
from tests.store.conftest import Make
from tests.store.test_damaged_rows import filled

DAMAGE = {
    "run": ("UPDATE runs SET exit_code = 0 WHERE node = 'a'", "run '{run}' of node 'a'"),
    "output": ("UPDATE output SET data = X'00' WHERE position = 8", "output of run {run} at 8"),
    "event": ("UPDATE events SET body = '{{}}' WHERE seq = 2", "event 2"),
    "text": ("UPDATE jobs SET command = CAST(X'FF' AS TEXT)", "the row of '{job}'"),
    "word": ("UPDATE users SET role = 'queen'", "queen"),
    "audit": ("UPDATE audit SET body = replace(body, 'web-1', 'web-2')", "audit log: record"),
}


@pytest.fixture
def data(tmp_path: Path) -> DataDirectory:
    directory = DataDirectory(tmp_path / "data")
    assert run(["init", "--data-dir", str(directory.root)]) == 0
    assert run(["node", "token", "web-1", "--data-dir", str(directory.root)]) == 0
    return directory


def check(data: DataDirectory, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()
    code = run(["store", "check", "--data-dir", str(data.root)])
    said = capsys.readouterr()
    assert not said.err, said.err
    return code, said.out


def change(data: DataDirectory, statement: str) -> None:
    with closing(sqlite3.connect(data.store)) as connection, connection:
        connection.execute("DROP TRIGGER audit_is_not_changed")
        connection.execute(statement)


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_of_every_kind_is_named_and_has_an_exit_code_of_its_own(
    data: DataDirectory, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    job, runs = trio.run(filled, data.store, Make())
    assert check(data, capsys)[0] == 0
    statement, named = DAMAGE[kind]
    change(data, statement.format())
    before = data.store.read_bytes()
    code, said = check(data, capsys)
    assert code == Exit.DAMAGED.value
    assert named.format(run=runs[0].id, job=job.id) in said
    assert "1 damaged" in said
    assert data.store.read_bytes() == before


def test_rows_of_older_versions_are_counted_as_unchecked(
    data: DataDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    trio.run(filled, data.store, Make())
    change(data, "UPDATE output SET checksum = NULL")
    code, said = check(data, capsys)
    assert (code, "3 without a checksum" in said) == (0, True)


def test_damaged_page_is_named_and_everything_else_is_read(
    data: DataDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    trio.run(filled, data.store, Make())
    with closing(sqlite3.connect(data.store)) as connection:
        [[page]] = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'grants'").fetchall()
        [[size]] = connection.execute("PRAGMA page_size").fetchall()
    with data.store.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * 64)
    code, said = check(data, capsys)
    assert code == Exit.DAMAGED.value
    assert "grants: cannot be read to the end" in said
    assert "rows read" in said


def test_store_that_is_served_can_be_checked(data: DataDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    async def served() -> tuple[int, str]:
        async with open_store(data.store):
            return await trio.to_thread.run_sync(check, data, capsys)

    assert trio.run(served)[0] == 0
