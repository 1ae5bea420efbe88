"""``shovey-trio bench``: every scenario runs, at tiny size, against a real daemon, and says so in valid JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shovey_trio.bench.scenarios import SCENARIOS
from shovey_trio.demo.processes import program

_TINY = ("--agents", "6", "--processes", "2", "--rounds", "1", "--seconds", "1", "--history-runs", "400")


def run_bench(*arguments: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Runs it with a temporary directory of its own, so that what it leaves behind can be seen."""
    environ = {**os.environ, "TMPDIR": str(directory)}
    command = [*program("shovey-trio"), "bench", *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=90, check=False)


def processes_of(directory: Path) -> list[int]:
    """Processes that were started with something in ``directory``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
                environ = (entry / "environ").read_bytes()
            except OSError:
                continue
            if os.fsencode(directory) in command + environ:
                found.append(int(entry.name))
    return found


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Empty, and with a short name: an agent's two parts meet at a socket in it, whose path has 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        yield Path(directory)


@pytest.mark.slow
@pytest.mark.parametrize(
    "scenario", [pytest.param(name, marks=[pytest.mark.serf] * (name == "on-demand")) for name in SCENARIOS]
)
def test_a_scenario_measures_something_and_leaves_nothing_behind(scenario: str, tmp_path: Path, scratch: Path) -> None:
    result = tmp_path / "result.json"
    size = (*_TINY, "--output-mib", "2")
    done = run_bench(scenario, *size, "--json", str(result), directory=scratch)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(result.read_text("utf-8"))
    assert document["tls"] == "TLSv1.3"
    assert document["fsync"].startswith("on")
    assert document["machine"]["cores"] >= 1
    assert document["options"]["agents"] == 6
    figures = document["scenarios"][scenario]["figures"]
    assert figures
    for figure in figures:
        assert figure["name"] in done.stdout
        assert figure["count"] >= 1
        assert figure["median"] <= figure["p99"] <= figure["worst"] or figure["bar"]["at_least"]
    assert list(scratch.iterdir()) == []
    assert processes_of(scratch) == []


@pytest.mark.slow
def test_an_interrupt_ends_everything(tmp_path: Path, scratch: Path) -> None:
    environ = {**os.environ, "TMPDIR": str(scratch)}
    command = [*program("shovey-trio"), "bench", "idle", "--agents", "2", "--seconds", "3600"]
    log = tmp_path / "log"
    with log.open("wb") as output:
        bench = subprocess.Popen(command, env=environ, stdout=output, stderr=output)
    try:
        while not any(b"swarm_worker" in command_line(pid) for pid in children_of(bench.pid)):
            assert bench.poll() is None, log.read_text("utf-8")
            time.sleep(0.01)
        bench.send_signal(signal.SIGINT)
        assert bench.wait(timeout=60) == 130
    finally:
        bench.kill()
        bench.wait()
    assert list(scratch.iterdir()) == []
    assert processes_of(scratch) == []


def children_of(pid: int) -> list[int]:
    return [int(child) for child in _read(Path(f"/proc/{pid}/task/{pid}/children")).split()]


def command_line(pid: int) -> bytes:
    return _read(Path(f"/proc/{pid}/cmdline"))


def _read(path: Path) -> bytes:
    """What a file of /proc holds; nothing when its process has ended meanwhile."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_an_unknown_scenario_is_named_with_those_there_are(scratch: Path) -> None:
    done = run_bench("fan-out", directory=scratch)
    assert done.returncode == 2
    assert "fan-out" in done.stderr
    assert all(name in done.stderr.replace("\n", " ") for name in SCENARIOS)


def test_the_scenarios_can_be_listed_without_running_one(scratch: Path) -> None:
    done = run_bench("--list", directory=scratch)
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(SCENARIOS)
