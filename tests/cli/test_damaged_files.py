"""A data directory of which one file is damaged: what needs it says which it is, in a line."""

from __future__ import annotations

from pathlib import Path

import pytest

from shovey_trio.cli.controller.main import run
from shovey_trio.core.errors import ShoveyError
from shovey_trio.identity.layout import DataDirectory
from shovey_trio.identity.tls import load_controller_tls

DAMAGED = {
    "ca/ca.crt": ["node token web-1", "user cert bob --role viewer"],
    "ca/ca.key": ["user cert bob --role viewer"],
    "signing/default.json": ["key list", "node token web-1"],
    "signing/default.root.key": ["key rotate"],
    "signing/default.legacy.json": ["legacy key status"],
    "store.sqlite3": ["user list", "org list"],
    "shovey-trio.toml": ["user list"],
}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    assert run(["init", "--data-dir", str(tmp_path / "data")]) == 0
    return tmp_path / "data"


@pytest.mark.parametrize("name", DAMAGED)
def test_file_that_is_garbage_or_a_directory_is_named_by_what_needs_it(
    data: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = data / name
    file.write_bytes(bytes(range(256)) * 40)
    for how in ("garbage", "a directory"):
        if how == "a directory":
            file.unlink()
            file.mkdir(mode=0o700)
        for command in DAMAGED[name]:
            capsys.readouterr()
            assert run([*command.split(), "--data-dir", str(data)]) != 0
            [said] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
            assert str(file) in said, (how, command)
            assert "bug" not in said, (how, command)


@pytest.mark.parametrize("name", ["ca/ca.crt", "ca/ca.key", "tls/control.crt", "tls/enroll.key"])
def test_damaged_file_of_tls_is_named_when_the_controller_reads_it(data: Path, name: str) -> None:
    (data / name).write_text("garbage")
    with pytest.raises(ShoveyError, match=name):
        load_controller_tls(DataDirectory(data))
