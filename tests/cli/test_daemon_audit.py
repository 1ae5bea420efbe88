"""``shovey-trio audit``: verify finds what was done to the store, export is what can be kept elsewhere."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
import trio

from shovey_trio.application.audit_anchor import open_anchor
from shovey_trio.cli.controller.main import run
from shovey_trio.core.audit.records import AuditAction, AuditEntry, AuditOutcome
from shovey_trio.core.errors import Exit
from shovey_trio.identity.audit_files import AuditFiles
from shovey_trio.identity.layout import DataDirectory
from shovey_trio.nursery.clock import WallClock
from shovey_trio.store.opening import open_store

DAY = 1_800_000_000.0  # 2027-01-15T08:00:00Z
TAMPER = {
    "changed": "UPDATE audit SET body = replace(body, 'user/3', 'user/9') WHERE seq = {first} + 3",
    "deleted": "DELETE FROM audit WHERE seq = {first} + 2",
    "inserted": "INSERT INTO audit SELECT max(seq) + 1, at, organization, body, hash FROM audit",
    "reordered": "UPDATE audit SET body = (SELECT body FROM audit WHERE seq = {first} + 1) WHERE seq = {first} + 4",
    "cut off": "DELETE FROM audit WHERE seq > {first} + 2",
    "beginning taken away": "DELETE FROM audit WHERE seq < {first} + 2",
    "emptied": "DELETE FROM audit",
}


def entries(count: int) -> list[AuditEntry]:
    return [
        AuditEntry(
            at=DAY + 3600 * number,
            organization="default" if number % 2 else "other",
            action=AuditAction.GRANT_GIVEN,
            outcome=AuditOutcome.ALLOWED,
            subject=f"user/{number}",
        )
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> DataDirectory:
    """A data directory with a signed log, made once."""
    directory = DataDirectory(tmp_path_factory.mktemp("audit") / "data")
    assert run(["init", "--data-dir", str(directory.root)]) == 0

    async def fill() -> None:
        async with open_store(directory.store) as store:
            await store.append_audit(entries(6))
            anchor = await open_anchor(store=store, file=AuditFiles(directory), clock=WallClock())
            await anchor.sign()

    trio.run(fill)
    return directory


@pytest.fixture
def data(made: DataDirectory, tmp_path: Path) -> DataDirectory:
    """A copy of it."""
    shutil.copytree(made.root, tmp_path / "data")
    return DataDirectory(tmp_path / "data")


def audit(data: DataDirectory, *words: str) -> int:
    return run(["audit", *words, "--data-dir", str(data.root)])


def change(data: DataDirectory, statement: str) -> None:
    """As somebody with the file would: triggers keep our own mistakes out, and nobody else."""
    with closing(sqlite3.connect(data.store)) as connection, connection:
        for trigger in ("audit_is_not_changed", "audit_is_pruned_from_its_beginning"):
            connection.execute(f"DROP TRIGGER {trigger}")
        [first] = connection.execute("SELECT min(seq) FROM audit WHERE body LIKE '%grant.given%'").fetchone()
        assert connection.execute(statement.format(first=first)).rowcount


def exported(capsys: pytest.CaptureFixture[str], data: DataDirectory, *words: str) -> Sequence[str]:
    capsys.readouterr()
    assert audit(data, "export", *words) == 0
    return capsys.readouterr().out.splitlines()


def test_log_that_is_as_it_was_written_verifies(data: DataDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit(data, "verify") == 0
    out = capsys.readouterr().out
    assert "records hold" in out
    assert audit(data, "head") == 0
    head = capsys.readouterr().out.strip()
    assert f"head {head}" in out
    assert audit(data, "verify", "--unsigned", "--head", head) == 0


@pytest.mark.parametrize("kind", TAMPER)
def test_tampering_with_the_store_is_found(data: DataDirectory, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    change(data, TAMPER[kind])
    assert audit(data, "verify") == Exit.INTERNAL.value
    assert "error: " in capsys.readouterr().err


def test_missing_signed_head_is_found(data: DataDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    data.audit_head.unlink()
    assert audit(data, "verify") == Exit.INTERNAL.value
    assert "head.json is missing" in capsys.readouterr().err
    assert audit(data, "verify", "--unsigned") == 0


def test_head_that_was_kept_elsewhere_must_be_met(data: DataDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit(data, "verify", "--unsigned", "--head", "999:" + "0" * 64) == Exit.INTERNAL.value
    assert "999 was written and is missing" in capsys.readouterr().err
    assert audit(data, "verify", "--head", "nonsense") == Exit.USAGE.value


def test_whole_export_verifies_without_the_controller(
    data: DataDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = exported(capsys, data)
    file = tmp_path / "export.jsonl"
    file.write_text("\n".join(lines))
    assert audit(data, "verify", "--file", str(file)) == 0
    file.write_text("\n".join([*lines[:-2], lines[-1]]))
    assert audit(data, "verify", "--file", str(file)) == Exit.INTERNAL.value


def test_export_is_of_a_time_and_of_an_organization(data: DataDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    times = ("--from", "2027-01-15T09:00:00", "--to", "2027-01-15 13:00:00")
    lines = exported(capsys, data, *times)
    assert [json.loads(line)["subject"] for line in lines] == ["user/1", "user/2", "user/3", "user/4"]
    assert all("previous" in json.loads(line) for line in lines)
    ours = exported(capsys, data, "--org", "default", *times)
    assert [json.loads(line)["subject"] for line in ours] == ["user/1", "user/3"]
