"""``shovey-trio bench --peer``: the same emulated old nodes in front of our daemon and of a real goiardi."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lab.goiardi import find_goiardi
from tests.bench.test_bench_cli import processes_of, run_bench, scratch

__all__ = ["scratch"]


@pytest.mark.slow
def test_both_servers_bring_all_nodes_to_their_true_end_and_leave_nothing_behind(tmp_path: Path, scratch: Path) -> None:
    if find_goiardi() is None:
        pytest.skip("needs goiardi")
    result = tmp_path / "result.json"
    # Of ten nodes one fails by its own account; and their names fit one query, so that goiardi serves them too.
    size = ("--agents", "10", "--rounds", "1", "--peer", "goiardi")
    done = run_bench("legacy", *size, "--json", str(result), directory=scratch)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(result.read_text("utf-8"))
    found = {figure["name"]: figure["median"] for figure in document["scenarios"]["legacy"]["figures"]}
    for who in ("", "goiardi, "):
        name = f"{who}job on 10 emulated old nodes"
        assert found[f"{name}: lost results"] == 0
        assert found[f"{name}: reports not taken"] == 0
        assert found[f"{name}: queries"] == 1
    assert all(figure["simulated"] for figure in document["scenarios"]["legacy"]["figures"])
    assert list(scratch.iterdir()) == []
    assert processes_of(scratch) == []


def test_a_peer_that_is_not_installed_is_left_out_and_said(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    # A scenario that there is not keeps this from measuring anything.
    done = run_bench("none", "--peer", "goiardi", directory=scratch)
    assert done.returncode == 2
    assert "goiardi is not installed" in done.stderr
