"""Restart anything, any time: the agent, its zygote, a supervisor, the machine. No run is lost, none runs twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path

import pytest
import trio

from shovey_agent.run.runs import Duplicate, ExitCause, RunPhase, RunSpec
from shovey_agent.run.zygote_client import Zygote
from shovey_agent.supervisor.proc_posix import ProcessStat, descendants, read_stat
from shovey_trio.core.jobs.model import ProofKind

from .conftest import OpenRunner

Survivors = Callable[[], list[ProcessStat]]


class AgentProcess:
    """An agent of its own process, made to be killed."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self._text = b""

    async def start(self, spec: RunSpec) -> None:
        assert self.process.stdin is not None
        left_out = {"order", "signature", "stdin", "secrets", "limits", "account"}  # not JSON, and at their defaults
        fields = {name: value for name, value in asdict(spec).items() if name not in left_out}
        await self.process.stdin.send_all(json.dumps(fields).encode() + b"\n")

    async def said(self, word: str) -> None:
        assert self.process.stdout is not None
        while word.encode() + b"\n" not in self._text:
            part = await self.process.stdout.receive_some(4096)
            assert part, f"the agent ended before it said {word!r}: {self._text!r}"
            self._text += part

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def agent_process(state_dir: Path) -> AsyncIterator[AgentProcess]:
    program = Path(__file__).with_name("agent_process.py")
    roots = [str(Path(sys.modules[name].__file__ or "").parent.parent) for name in ("shovey_agent", "shovey_trio")]
    process = await trio.lowlevel.open_process(
        [sys.executable, str(program), str(state_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(roots)},
    )
    try:
        yield AgentProcess(process)
    finally:
        process.kill()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 10):
            await process.wait()


async def test_killed_agent_adopts_exit_code_and_output_when_it_is_back(
    open_runner: OpenRunner, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    async with open_runner() as runner:
        release = state / "release"
        spec = runner.spec("sh", "-c", f"echo before; until [ -e {release} ]; do sleep 0.02; done; echo after; exit 42")
    async with agent_process(state) as agent:
        await agent.start(spec)
        await agent.said(f"started {spec.run_id}")
        await agent.kill()
    async with open_runner() as runner:
        assert runner.known(spec.run_id).phase is RunPhase.RUNNING
        assert isinstance(await runner.executor.start(spec), Duplicate)
        release.touch()
        report = await runner.finished(spec.run_id)
        assert (report.cause, report.exit_code) == (ExitCause.EXITED, 42)
        assert await runner.output(spec.run_id) == b"before\nafter\n"


async def test_run_that_ended_while_no_agent_was_there_is_known_with_its_report(
    open_runner: OpenRunner, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    async with open_runner() as runner:
        release = state / "release"
        spec = runner.spec("sh", "-c", f"until [ -e {release} ]; do sleep 0.02; done; exit 43")
    async with agent_process(state) as agent:
        await agent.start(spec)
        await agent.said(f"started {spec.run_id}")
        supervisor = _supervisor(state / "runs" / spec.run_id)
        await agent.kill()
    release.touch()
    await _gone(supervisor)
    async with open_runner() as runner:
        known = runner.known(spec.run_id)
        assert known.exit is not None
        assert (known.phase, known.exit.exit_code) == (RunPhase.FINISHED, 43)


async def test_agent_killed_at_any_moment_of_a_start_runs_it_at_most_once(
    open_runner: OpenRunner, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    tally = tmp_path / "tally"
    causes = []
    for attempt in range(8):
        async with open_runner() as runner:
            spec = runner.spec("sh", "-c", f"echo x >> {tally}-{attempt}")
        async with agent_process(state) as agent:
            await agent.start(spec)
            await agent.said(f"accepted {spec.run_id}")
            await trio.sleep(attempt * 0.002)  # a moment of its own for each attempt, whatever it hits
            await agent.kill()
        async with open_runner() as runner:
            known = runner.known(spec.run_id)
            report = known.exit or await runner.finished(spec.run_id)
            assert isinstance(await runner.executor.start(spec), Duplicate)
        starts = Path(f"{tally}-{attempt}").read_text() if Path(f"{tally}-{attempt}").exists() else ""
        match report.cause:
            case ExitCause.EXITED:
                assert starts == "x\n"
            case ExitCause.SUPERVISOR_LOST:
                assert (report.proof, starts) == (ProofKind.NEVER_STARTED, "")
            case cause:
                pytest.fail(f"unexpected {cause}")
        causes.append(report.cause)
    assert len(causes) == 8


async def test_cancel_reaches_an_adopted_run(open_runner: OpenRunner) -> None:
    async with open_runner() as runner:
        run_id = await runner.start("sleep", "1000")
        await runner.started(run_id)
    async with open_runner() as runner:
        await runner.executor.cancel(run_id, grace=5)
        report = await runner.finished(run_id)
        assert (report.cause, report.proof) == (ExitCause.CANCELLED, ProofKind.EMPTY_SUBREAPER)


async def test_deadline_is_kept_while_no_agent_is_there(open_runner: OpenRunner) -> None:
    async with open_runner() as runner:
        run_id = await runner.start("sleep", "1000", timeout=0.3)
        await runner.started(run_id)
        supervisor = _supervisor(runner.directory(run_id))
    await _gone(supervisor)
    async with open_runner() as runner:
        known = runner.known(run_id)
        assert known.exit is not None
        assert known.exit.cause is ExitCause.TIMED_OUT


async def test_killed_supervisor_takes_the_whole_tree_with_it_and_the_run_is_lost(
    open_runner: OpenRunner, nothing_survives: Survivors
) -> None:
    program = "import os, time\nif os.fork() == 0: os.setsid()\nos.write(1, b'ready')\ntime.sleep(1000)"
    async with open_runner() as runner:
        run_id = await runner.python(program)
        await runner.grown(run_id, b"readyready")
        os.kill(_supervisor(runner.directory(run_id)), signal.SIGKILL)
        report = await runner.finished(run_id)
        assert (report.cause, report.proof) == (ExitCause.SUPERVISOR_LOST, ProofKind.EMPTY_SUBREAPER)
        assert report.started_at is not None
        assert nothing_survives() == []
        # What the command had written is still there, and its place is told.
        assert await runner.output(run_id) == b"readyready"
        assert report.output_bytes == 10


async def test_supervisor_killed_while_no_agent_is_there_is_found_out_and_its_tree_ended(
    open_runner: OpenRunner, nothing_survives: Survivors
) -> None:
    program = "import os, time\nif os.fork() == 0: os.setsid()\nos.write(1, b'ready')\ntime.sleep(1000)"
    async with open_runner() as runner:
        run_id = await runner.python(program)
        await runner.grown(run_id, b"readyready")
        supervisor = _supervisor(runner.directory(run_id))
    os.kill(supervisor, signal.SIGKILL)
    async with open_runner() as runner:
        assert (await runner.finished(run_id)).cause is ExitCause.SUPERVISOR_LOST
        assert nothing_survives() == []


async def test_pid_that_belongs_to_another_process_by_now_is_left_alone(open_runner: OpenRunner) -> None:
    async with open_runner() as runner:
        run_id = await runner.start("true")
        await runner.finished(run_id)
        directory = runner.directory(run_id)
        (directory / "exit.json").unlink()
    bystander = await trio.lowlevel.open_process(["sleep", "1000"], start_new_session=True)
    try:
        for name in ("supervisor.json", "started.json"):
            record = json.loads((directory / name).read_text())
            (directory / name).write_text(json.dumps({**record, "pid": bystander.pid}))
        async with open_runner() as runner:
            assert (await runner.finished(run_id)).cause is ExitCause.SUPERVISOR_LOST
            await runner.executor.cancel(run_id, grace=0)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 10):
            await bystander.wait()


async def test_new_boot_makes_an_open_run_crashed_by_reboot_and_never_starts_it_again(open_runner: OpenRunner) -> None:
    async with open_runner() as runner:
        tally = runner.state_dir / "tally"
        spec = runner.spec("sh", "-c", f"echo x >> {tally}")
        await runner.executor.start(spec)
        await runner.finished(spec.run_id)
        directory = runner.directory(spec.run_id)
        (directory / "exit.json").unlink()
        for name in ("supervisor.json", "spec.json"):
            record = json.loads((directory / name).read_text())
            (directory / name).write_text(json.dumps({**record, "boot_id": "another"}))
    async with open_runner() as runner:
        report = await runner.finished(spec.run_id)
        assert report.cause is ExitCause.NODE_REBOOTED
        assert isinstance(await runner.executor.start(spec), Duplicate)
        assert tally.read_text() == "x\n"
    async with open_runner() as runner:
        assert runner.known(spec.run_id).exit == report


async def test_run_that_was_cut_off_before_it_was_durable_ends_as_never_started(open_runner: OpenRunner) -> None:
    async with open_runner() as runner:
        whole = runner.spec("touch", str(runner.state_dir / "ran"))
        await runner.executor.start(whole)
        await runner.finished(whole.run_id)
        source = runner.directory(whole.run_id)
        (runner.state_dir / "ran").unlink()
        names = ["exit.reserve", "order", "output", "spec.json"]
        (source / "exit.reserve").write_bytes(b"\0" * 4096)
        for step in range(len(names)):
            cut = runner.directory(f"cut-{step}")
            cut.mkdir(mode=0o700)
            for name in names[:step]:
                shutil.copy(source / name, cut / name)
    async with open_runner() as runner:
        for step in range(len(names)):
            report = await runner.finished(f"cut-{step}")
            assert (report.cause, report.proof) == (ExitCause.SUPERVISOR_LOST, ProofKind.NEVER_STARTED)
            assert isinstance(await runner.executor.start(runner.spec("true", run_id=f"cut-{step}")), Duplicate)
        assert not (runner.state_dir / "ran").exists()


async def leave_accepted(open_runner: OpenRunner, run_id: str, **changes: object) -> Path:
    """Leaves a run in the spool as an agent does that dies before it asks for a supervisor; returns its tally."""
    async with open_runner() as runner:
        tally = runner.state_dir / f"tally-{run_id}"
        whole = runner.spec("sh", "-c", f"echo x >> {tally}")
        await runner.executor.start(whole)
        await runner.finished(whole.run_id)
        tally.unlink()
        left = runner.directory(run_id)
        left.mkdir(mode=0o700)
        for name in ("order", "spec.json"):
            shutil.copy(runner.directory(whole.run_id) / name, left / name)
        (left / "exit.reserve").write_bytes(b"\0" * 4096)
        (left / "output").touch()
        spec = json.loads((left / "spec.json").read_bytes())
        (left / "spec.json").write_text(json.dumps({**spec, "run_id": run_id, **changes}))
    return tally


async def test_run_that_was_durable_when_its_agent_died_is_started_by_the_next_one_once(
    open_runner: OpenRunner,
) -> None:
    tally = await leave_accepted(open_runner, "left")
    async with open_runner() as runner:
        report = await runner.finished("left")
        assert (report.cause, report.exit_code) == (ExitCause.EXITED, 0)
        assert isinstance(await runner.executor.start(runner.spec("true", run_id="left")), Duplicate)
    async with open_runner() as runner:
        assert runner.known("left").exit == report
    assert tally.read_text() == "x\n"


@pytest.mark.parametrize("changes", [{"ends_by": 1.0}, {"boot_id": "another"}], ids=["time over", "other boot"])
async def test_run_whose_time_is_over_or_whose_boot_is_another_is_not_started_by_the_next_agent(
    open_runner: OpenRunner, changes: dict[str, object]
) -> None:
    tally = await leave_accepted(open_runner, "left", **changes)
    async with open_runner() as runner:
        report = await runner.finished("left")
        assert report.proof is ProofKind.NEVER_STARTED
    assert not tally.exists()


async def test_supervisor_that_comes_too_late_finds_the_run_taken_and_starts_nothing(open_runner: OpenRunner) -> None:
    async with open_runner() as runner:
        spec = runner.spec("touch", str(runner.state_dir / "ran"))
        await runner.executor.start(spec)
        await runner.finished(spec.run_id)
        (runner.state_dir / "ran").unlink()
        zygote = Zygote()
        try:
            channel = await zygote.launch(str(runner.directory(spec.run_id)))
            with channel:
                words = []
                while word := await channel.recv(64):
                    words.append(word)
        finally:
            await zygote.aclose()
        assert words == [b"ready"]
        assert not (runner.state_dir / "ran").exists()


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'{"format": 99}',
        b'{"format": 1}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"format": 1, "cause": "x"}',
    ],
)
@pytest.mark.parametrize("name", ["spec.json", "supervisor.json", "started.json", "exit.json", "cancel.json", "output"])
async def test_damaged_file_in_the_spool_stops_nothing_and_runs_nothing_again(
    open_runner: OpenRunner, name: str, junk: bytes
) -> None:
    async with open_runner() as runner:
        tally = runner.state_dir / "tally"
        spec = runner.spec("sh", "-c", f"echo x >> {tally}")
        await runner.executor.start(spec)
        await runner.finished(spec.run_id)
        (runner.directory(spec.run_id) / name).write_bytes(junk)
    async with open_runner() as runner:
        known = runner.known(spec.run_id)
        report = known.exit or await runner.finished(spec.run_id)
        assert report.cause in (ExitCause.EXITED, ExitCause.SUPERVISOR_LOST)
        assert isinstance(await runner.executor.start(spec), Duplicate)
        assert tally.read_text() == "x\n"
        await runner.chunks(spec.run_id)
        assert (await runner.run("true")).exit_code == 0


async def test_foreign_things_in_the_spool_are_left_alone(open_runner: OpenRunner, tmp_path: Path) -> None:
    runs = tmp_path / "state" / "runs"
    runs.mkdir(parents=True)
    (runs / "a file").write_text("x")
    (runs / "name with blanks").mkdir()
    (runs / "link").symlink_to(tmp_path)
    (runs / "plainfile").write_text("x")
    os.mkfifo(runs / "fifo")
    (runs / ".removed.gone").mkdir()
    (runs / ".removed.gone" / "output").write_text("x")
    async with open_runner() as runner:
        assert runner.executor.known_runs() == ()
        assert (await runner.run("true")).exit_code == 0
    assert not (runs / ".removed.gone").exists()
    assert (runs / "a file").exists()


async def test_killed_zygote_harms_no_run_and_is_replaced(open_runner: OpenRunner) -> None:
    async with open_runner() as runner:
        for _ in range(3):
            running = await runner.start("sh", "-c", "read nothing; sleep 0.2; exit 8")
            await runner.started(running)
            zygote = _zygote()
            os.kill(zygote, signal.SIGKILL)
            assert (await runner.run("true")).exit_code == 0
            assert (await runner.finished(running)).exit_code == 8
            assert _zygote() != zygote


async def test_zygote_ends_with_its_agent_and_supervisors_do_not(open_runner: OpenRunner, tmp_path: Path) -> None:
    async with open_runner() as runner:
        spec = runner.spec("sleep", "1000")
    async with agent_process(tmp_path / "state") as agent:
        await agent.start(spec)
        await agent.said(f"started {spec.run_id}")
        supervisor = _supervisor(tmp_path / "state" / "runs" / spec.run_id)
        stat = read_stat(supervisor)
        assert stat is not None
        guardian = read_stat(stat.parent)
        assert guardian is not None
        zygote = guardian.parent
        await agent.kill()
    await _gone(zygote)
    assert read_stat(supervisor) is not None
    async with open_runner() as runner:
        await runner.executor.cancel(spec.run_id, grace=5)
        assert (await runner.finished(spec.run_id)).cause is ExitCause.CANCELLED


async def test_job_that_kills_its_own_agent_ends_as_it_would_have(open_runner: OpenRunner, tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with open_runner() as runner:
        pidfile = state / "agent.pid"
        spec = runner.spec("sh", "-c", f"kill -9 $(cat {pidfile}); echo restarted")
    async with agent_process(state) as agent:
        pidfile.write_text(str(agent.process.pid))
        await agent.start(spec)
        with trio.fail_after(20):
            await agent.process.wait()
    async with open_runner() as runner:
        known = runner.known(spec.run_id)
        report = known.exit or await runner.finished(spec.run_id)
        assert (report.cause, report.exit_code) == (ExitCause.EXITED, 0)
        assert await runner.output(spec.run_id) == b"restarted\n"


async def test_reported_mark_survives_a_restart(open_runner: OpenRunner) -> None:
    async with open_runner() as runner:
        run_id = await runner.start("true")
        await runner.finished(run_id)
        await runner.executor.mark_reported(run_id)
    async with open_runner() as runner:
        assert runner.known(run_id).reported
        assert await runner.executor.forget(run_id)
        assert runner.executor.known_run(run_id) is None


async def _gone(pid: int) -> None:
    """Waits until a process that is not ours to wait for has ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with trio.fail_after(20):
            await trio.lowlevel.wait_readable(pidfd)
    finally:
        os.close(pidfd)


def _supervisor(directory: Path) -> int:
    return int(json.loads((directory / "supervisor.json").read_text())["pid"])


def _zygote() -> int:
    for stat in descendants({os.getpid()}):
        if stat.parent == os.getpid() and b"supervisor/zygote.py" in Path(f"/proc/{stat.pid}/cmdline").read_bytes():
            return stat.pid
    raise AssertionError("there is no zygote")
