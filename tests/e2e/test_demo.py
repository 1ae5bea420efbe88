"""``shovey-trio demo``: it ends by itself, and leaves nothing whenever it is interrupted."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import trio

from lab.limits import within
from shovey_trio.demo.processes import ManagedProcess, program

pytestmark = pytest.mark.slow

_INTERRUPTED = 130


@within(110)
@pytest.mark.parametrize(
    "options", [pytest.param((), marks=pytest.mark.serf, id="serf"), pytest.param(("--no-serf",), id="streams")]
)
async def test_the_demo_shows_the_main_job_and_leaves_nothing(tmp_path: Path, options: tuple[str, ...]) -> None:
    demo = _demo(tmp_path, *options)
    await demo.start()
    assert await demo.wait() == 0, demo.tail(80)
    shown = demo.log.read_text()
    for word in (
        "step 3 of 3",
        "complete: 3 succeeded",
        "the disk is full",
        "complete: 2 succeeded, 1 failed",
        "all of them are gone",
        "web-3  up",
    ):
        assert word in shown, demo.tail(80)
    assert ("serf is installed" in shown) is (not options)
    assert "Traceback" not in shown
    _assert_nothing_left(tmp_path)


@within(110)
@pytest.mark.parametrize("moment", ["starting a controller", "1. A job", "running as processes"])
async def test_the_demo_interrupted_at_any_moment_leaves_nothing(tmp_path: Path, moment: str) -> None:
    demo = _demo(tmp_path, "--no-serf")
    await demo.start()
    while moment not in demo.log.read_text():
        demo.check()
        await trio.sleep(0.02)
    demo.send_signal(signal.SIGINT)
    assert await demo.wait() == _INTERRUPTED, demo.tail(80)
    assert "Traceback" not in demo.log.read_text()
    _assert_nothing_left(tmp_path)


def _demo(tmp_path: Path, *options: str) -> ManagedProcess:
    (tmp_path / "tmp").mkdir()
    # Whatever it starts carries this, and whatever it writes is below it.
    environ = {"TMPDIR": str(tmp_path / "tmp"), "HOME": str(tmp_path)}
    return ManagedProcess([*program("shovey-trio"), "demo", *options], log=tmp_path / "demo.log", environ=environ)


def _assert_nothing_left(tmp_path: Path) -> None:
    assert list((tmp_path / "tmp").iterdir()) == []
    assert _processes_with(f"TMPDIR={tmp_path / 'tmp'}", str(tmp_path)) == []


def _processes_with(variable: str, path: str) -> list[str]:
    """Command lines of living processes that carry a variable, or name a path."""
    found = []
    for directory in Path("/proc").iterdir():
        if not directory.name.isdecimal() or int(directory.name) == os.getpid():
            continue
        try:
            environment = (directory / "environ").read_bytes().split(b"\0")
            command = (directory / "cmdline").read_bytes()
        except OSError:
            continue
        # A zombie has neither; it is its parent's to reap.
        if variable.encode() in environment or (path.encode() in command and b"pytest" not in command):
            found.append(command.replace(b"\0", b" ").decode("utf-8", "replace"))
    return found
