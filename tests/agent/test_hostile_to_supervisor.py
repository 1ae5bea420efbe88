"""What a command does to its supervisor puts it beyond neither cancel nor timeout, and nothing of it survives."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from shovey_agent.run.runs import ExitCause
from shovey_agent.supervisor.proc_posix import ProcessStat, is_held, read_stat
from shovey_trio.core.jobs.model import ProofKind

from .conftest import OpenRunner, Runner

Survivors = Callable[[], list[ProcessStat]]

_GRACE = 0.5
# What the issue allows beyond the grace.
_ALLOWED = _GRACE + 5.0

# A child that neither environment nor session show as the run's, with its pid where the test finds it, and an end of
# its own in case the test does not end it.
_ESCAPE = "setsid env -i sh -c 'trap \"\" TERM HUP; echo $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 60' &"
_WAIT = "while ! [ -e {pid} ]; do sleep 0.02; done"
_TRACE = (
    "import ctypes, os, time\n"
    "libc = ctypes.CDLL(None, use_errno=True)\n"
    # PTRACE_SEIZE, then PTRACE_INTERRUPT
    "if libc.ptrace(0x4206, os.getppid(), 0, 0): raise SystemExit(9)\n"
    "libc.ptrace(0x4207, os.getppid(), 0, 0)\n"
    "open({pid!r}, 'w').write(str(os.getpid()))\n"
    "time.sleep(60)\n"
)


def _argv(attack: str, pid: Path) -> tuple[str, ...]:
    if attack == "trace":
        return (sys.executable, "-I", "-S", "-c", _TRACE.format(pid=str(pid)))
    blow = {
        "stop": "kill -STOP $PPID",
        "stop the guardian too": "kill -STOP $(cut -d' ' -f4 /proc/$PPID/stat) $PPID",
    }[attack]
    return (
        "sh",
        "-c",
        "; ".join((_ESCAPE.format(pid=pid).removesuffix(" &") + " & " + _WAIT.format(pid=pid), blow)) + "; sleep 60",
    )


async def _escaped(pid: Path) -> ProcessStat:
    """The process that the command has put out of sight."""
    while not pid.exists():
        await trio.sleep(0.02)
    stat = read_stat(int(pid.read_text()))
    assert stat is not None
    return stat


def _lives(stat: ProcessStat) -> bool:
    now = read_stat(stat.pid)
    return now is not None and now.start_time == stat.start_time and not now.is_dead


async def _held(runner: Runner, run_id: str) -> None:
    """Waits until the supervisor of a run is stopped or traced."""
    supervisor = json.loads((runner.directory(run_id) / "supervisor.json").read_text())["pid"]
    while not is_held(supervisor):
        await trio.sleep(0.02)


_ATTACKS = ("stop", "stop the guardian too", "trace")


@pytest.mark.parametrize("attack", _ATTACKS)
async def test_cancel_ends_a_command_that_holds_its_supervisor_within_grace_and_five_seconds(
    open_runner: OpenRunner, nothing_survives: Survivors, tmp_path: Path, attack: str
) -> None:
    async with open_runner(max_runs=1) as runner:
        run_id = await runner.start(*_argv(attack, tmp_path / "pid"))
        escaped = await _escaped(tmp_path / "pid")
        await _held(runner, run_id)
        began = time.monotonic()
        await runner.executor.cancel(run_id, grace=_GRACE)
        report = await runner.finished(run_id)
        assert time.monotonic() - began < _ALLOWED
        assert (report.cause, report.proof) == (ExitCause.CANCELLED, ProofKind.EMPTY_SUBREAPER)
        assert not _lives(escaped)
        assert nothing_survives() == []
        # Its place is free again.
        assert (await runner.run("true")).exit_code == 0


@pytest.mark.parametrize("attack", _ATTACKS)
async def test_timeout_ends_a_command_that_holds_its_supervisor_within_grace_and_five_seconds(
    open_runner: OpenRunner, nothing_survives: Survivors, tmp_path: Path, attack: str
) -> None:
    async with open_runner(max_runs=1) as runner:
        began = time.monotonic()
        run_id = await runner.start(*_argv(attack, tmp_path / "pid"), timeout=1.0, grace=_GRACE)
        escaped = await _escaped(tmp_path / "pid")
        report = await runner.finished(run_id)
        assert time.monotonic() - began < 1.0 + _ALLOWED
        assert (report.cause, report.proof) == (ExitCause.TIMED_OUT, ProofKind.EMPTY_SUBREAPER)
        assert not _lives(escaped)
        assert nothing_survives() == []
        assert (await runner.run("true")).exit_code == 0


async def test_killed_supervisor_leaves_no_child_without_session_and_environment(
    open_runner: OpenRunner, nothing_survives: Survivors, tmp_path: Path
) -> None:
    pid = tmp_path / "pid"
    async with open_runner(max_runs=1) as runner:
        script = f"{_ESCAPE.format(pid=pid)} {_WAIT.format(pid=pid)}; kill -KILL $PPID; sleep 60"
        report = await runner.run("sh", "-c", script)
        assert (report.cause, report.proof) == (ExitCause.SUPERVISOR_LOST, ProofKind.EMPTY_SUBREAPER)
        assert read_stat(int(pid.read_text())) is None
        assert nothing_survives() == []
        assert (await runner.run("true")).exit_code == 0


async def test_supervisor_that_is_stopped_while_no_agent_is_there_ends_its_run_in_time_too(
    open_runner: OpenRunner, tmp_path: Path
) -> None:
    pid = tmp_path / "pid"
    async with open_runner() as runner:
        run_id = await runner.start(*_argv("stop", pid), timeout=1.0, grace=_GRACE)
        escaped = await _escaped(pid)
        await _held(runner, run_id)
    pidfd = os.pidfd_open(escaped.pid)
    try:
        with trio.fail_after(1.0 + _ALLOWED):
            await trio.lowlevel.wait_readable(pidfd)
    finally:
        os.close(pidfd)
    async with open_runner() as runner:
        known = runner.known(run_id)
        report = known.exit or await runner.finished(run_id)
        assert (report.cause, report.proof) == (ExitCause.TIMED_OUT, ProofKind.EMPTY_SUBREAPER)


async def test_killed_guardian_changes_nothing_for_the_run(open_runner: OpenRunner) -> None:
    async with open_runner() as runner:
        run_id = await runner.start("sh", "-c", "kill -KILL $(cut -d' ' -f4 /proc/$PPID/stat); sleep 0.1; exit 4")
        report = await runner.finished(run_id)
        assert (report.cause, report.exit_code) == (ExitCause.EXITED, 4)


async def test_guardian_goes_with_its_supervisor_and_lets_the_background_live(
    open_runner: OpenRunner, tmp_path: Path
) -> None:
    pid = tmp_path / "pid"
    async with open_runner() as runner:
        script = f"{_ESCAPE.format(pid=pid)} {_WAIT.format(pid=pid)}; cut -d' ' -f4 /proc/$PPID/stat"
        run_id = await runner.start("sh", "-c", script)
        report = await runner.finished(run_id)
        assert (report.cause, report.exit_code) == (ExitCause.EXITED, 0)
        guardian = int(await runner.output(run_id))
        while read_stat(guardian) is not None:
            await trio.sleep(0.02)
        background = await _escaped(pid)
        assert _lives(background)
        os.kill(background.pid, signal.SIGKILL)
