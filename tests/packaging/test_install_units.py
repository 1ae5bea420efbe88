"""``shovey-trio install-units``: what the wheel has for systemd is put where it looks, and kept as it is there."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from shovey_trio.cli.controller.main import run
from shovey_trio.core.errors import Exit

UNITS = {
    "shovey-agent-launcher.service",
    "shovey-agent-single.service",
    "shovey-agent.service",
    "shovey-trio.service",
}


def install(root: Path, *words: str) -> int:
    return run(["install-units", "--root", str(root), *words])


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_units_accounts_and_a_whitelist_are_installed_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert install(tmp_path) == 0
    there = contents(tmp_path)
    assert there.keys() == {
        "etc/shovey-agent/whitelist.json",
        "etc/sysusers.d/shovey-trio.conf",
        *(f"etc/systemd/system/{name}" for name in UNITS),
    }
    said = capsys.readouterr().out
    assert all(f"{tmp_path / name} is written\n" in said for name in there)


def test_units_call_the_programs_where_they_are_installed(tmp_path: Path) -> None:
    install(tmp_path)
    for name in UNITS:
        text = (tmp_path / "etc/systemd/system" / name).read_text()
        [line] = [line for line in text.splitlines() if line.startswith("ExecStart=")]
        assert Path(shlex.split(line.removeprefix("ExecStart="))[0]).parent == Path(sys.executable).parent


def test_what_was_changed_is_left_alone_unless_forced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(tmp_path)
    before = contents(tmp_path)
    unit = tmp_path / "etc/systemd/system/shovey-trio.service"
    unit.write_bytes(unit.read_bytes() + b"# mine\n")
    changed = contents(tmp_path)
    assert install(tmp_path) == Exit.CONFLICT.value
    assert f"{unit} was changed" in capsys.readouterr().err
    assert contents(tmp_path) == changed
    assert install(tmp_path, "--force") == 0
    assert contents(tmp_path) == before


def test_unit_of_another_version_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/opt/old/bin/python")
    install(tmp_path)
    monkeypatch.undo()
    assert install(tmp_path) == 0
    assert b"/opt/old" not in (tmp_path / "etc/systemd/system/shovey-trio.service").read_bytes()


def test_whitelist_that_is_there_is_never_written_over(tmp_path: Path) -> None:
    whitelist = tmp_path / "etc/shovey-agent/whitelist.json"
    whitelist.parent.mkdir(parents=True)
    whitelist.write_text('{"whitelist": {}}')
    assert install(tmp_path, "--force") == 0
    assert whitelist.read_text() == '{"whitelist": {}}'
