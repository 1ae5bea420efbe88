"""Cancel and timeout: the whole tree ends, and `cancelled` is written only when that is shown."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from shovey_agent.run.accounts import Account
from shovey_agent.run.runs import CancelOutcome, CancelReason, ExitCause
from shovey_agent.supervisor.proc_posix import ProcessStat
from shovey_trio.core.jobs.model import ProofKind

from .conftest import OpenRunner

Survivors = Callable[[], list[ProcessStat]]


async def test_cancel_ends_a_command_that_obeys_and_keeps_its_exit_code(open_runner: OpenRunner) -> None:
    async with open_runner() as runner:
        run_id = await runner.start("sh", "-c", "trap 'echo bye; exit 9' TERM; echo up; while :; do sleep 0.05; done")
        await runner.grown(run_id, b"up")
        assert await runner.executor.cancel(run_id, grace=20) is CancelOutcome.REQUESTED
        assert runner.known(run_id).cancelling
        report = await runner.finished(run_id)
        assert (report.cause, report.exit_code) == (ExitCause.CANCELLED, 9)
        assert report.proof is ProofKind.EMPTY_SUBREAPER
        assert await runner.output(run_id) == b"up\nbye\n"


async def test_cancel_kills_a_command_that_ignores_term(open_runner: OpenRunner) -> None:
    async with open_runner() as runner:
        run_id = await runner.start("sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done")
        await runner.grown(run_id, b"up")
        await runner.executor.cancel(run_id, grace=0.2)
        report = await runner.finished(run_id)
        assert (report.cause, report.signal) == (ExitCause.CANCELLED, signal.SIGKILL)
        assert report.proof is ProofKind.EMPTY_SUBREAPER
        assert report.finished_at - (report.started_at or 0) >= 0.2


async def test_cancel_wakes_a_stopped_command_so_that_it_can_obey(open_runner: OpenRunner) -> None:
    async with open_runner() as runner:
        run_id = await runner.start("sh", "-c", "trap 'exit 3' TERM; echo up; kill -STOP $$")
        await runner.grown(run_id, b"up")
        await runner.executor.cancel(run_id, grace=20)
        report = await runner.finished(run_id)
        assert (report.cause, report.exit_code) == (ExitCause.CANCELLED, 3)


async def test_deadline_ends_the_run_as_timed_out(open_runner: OpenRunner) -> None:
    async with open_runner() as runner:
        report = await runner.run("sleep", "1000", timeout=0.2)
        assert (report.cause, report.signal) == (ExitCause.TIMED_OUT, signal.SIGTERM)
        assert report.proof is ProofKind.EMPTY_SUBREAPER


async def test_absolute_deadline_counts_when_it_is_earlier(open_runner: OpenRunner) -> None:
    async with open_runner() as runner:
        report = await runner.run("sleep", "1000", timeout=1000, ends_by=1.0)
        assert report.cause is ExitCause.TIMED_OUT


async def test_timeout_asked_for_by_the_controller_is_reported_as_one(open_runner: OpenRunner) -> None:
    async with open_runner() as runner:
        run_id = await runner.start("sleep", "1000")
        await runner.started(run_id)
        await runner.executor.cancel(run_id, grace=5, reason=CancelReason.TIMEOUT)
        assert (await runner.finished(run_id)).cause is ExitCause.TIMED_OUT


# Each prints `ready` when the tree is up.
_HOSTILE = {
    "double fork and setsid": (
        "import os, time\n"
        "for _ in range(3):\n"
        "    if os.fork() == 0:\n"
        "        os.setsid()\n"
        "        if os.fork(): os._exit(0)\n"
        "        os.setsid(); os.write(1, b'ready'); time.sleep(1000)\n"
        "time.sleep(1000)\n"
    ),
    "term ignored by a child without environment": (
        "import os, signal, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    os.execve('/bin/sh', ['sh', '-c', 'trap \"\" TERM; echo ready; while :; do sleep 0.1; done'], {})\n"
        "time.sleep(1000)\n"
    ),
    "a chain of parents that are gone at once": (
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "os.write(1, b'ready')\n"
        "if os.fork(): time.sleep(1000)\n"
        "for _ in range(500):\n"
        "    if os.fork(): os._exit(0)\n"
        "    os.setsid()\n"
        "time.sleep(1000)\n"
    ),
    "leader ends at term and leaves a daemon that does not": (
        "import os, signal, time\n"
        "if os.fork() == 0:\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN); os.setsid(); os.write(1, b'ready'); time.sleep(1000)\n"
        "time.sleep(1000)\n"
    ),
}


@pytest.mark.parametrize("program", _HOSTILE.values(), ids=_HOSTILE.keys())
async def test_cancel_leaves_nothing_of_a_hostile_tree(
    open_runner: OpenRunner, nothing_survives: Survivors, program: str
) -> None:
    async with open_runner() as runner:
        run_id = await runner.python(program)
        await runner.grown(run_id, b"ready")
        await runner.executor.cancel(run_id, grace=0.1)
        report = await runner.finished(run_id)
        assert (report.cause, report.proof) == (ExitCause.CANCELLED, ProofKind.EMPTY_SUBREAPER)
        assert nothing_survives() == []


# Bounded twice over: at most so many processes at a time, and an end of its own in case the test does not end it.
_STORM = (
    "import os, signal, time, mmap\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
    "end = time.monotonic() + 20\n"
    "os.write(1, b'ready')\n"
    "for _ in range(8):\n"
    "    if os.fork() == 0:\n"
    "        while time.monotonic() < end:\n"
    "            if os.fork(): os._exit(0)\n"
    "            os.setsid()\n"
    "        os._exit(0)\n"
    "time.sleep(1000)\n"
)


async def test_fork_storm_cannot_outrun_the_sweep(open_runner: OpenRunner, nothing_survives: Survivors) -> None:
    async with open_runner() as runner:
        for _ in range(3):
            run_id = await runner.python(_STORM)
            await runner.grown(run_id, b"ready")
            await runner.executor.cancel(run_id, grace=0.05)
            report = await runner.finished(run_id)
            assert (report.cause, report.proof) == (ExitCause.CANCELLED, ProofKind.EMPTY_SUBREAPER)
            assert nothing_survives() == []


# Bounded three times over: one process a chain, the account's own limit, and an end of its own.
_STORM_OF_CHAINS = (
    "import os, signal, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "end = time.monotonic() + 90\n"
    "for _ in range(150):\n"
    "    if os.fork() == 0:\n"
    "        os.setsid()\n"
    "        while time.monotonic() < end:\n"
    "            try:\n"
    "                if os.fork(): os._exit(0)\n"
    "            except OSError: pass\n"
    "            time.sleep(0.0005)\n"
    "        os._exit(0)\n"
    "os.write(1, b'ready')\n"
    "time.sleep(90)\n"
)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to run commands as another account")
async def test_storm_of_150_chains_is_proven_dead_within_a_minute(
    open_runner: OpenRunner, nothing_survives: Survivors
) -> None:
    nobody = Account(name="nobody", uid=65534, gid=65534, groups=(), home="/")
    async with open_runner(hard_limit=120) as runner:
        run_id = await runner.start("/usr/bin/python3", "-I", "-S", "-c", _STORM_OF_CHAINS, account=nobody)
        await runner.grown(run_id, b"ready")
        began = time.monotonic()
        await runner.executor.cancel(run_id, grace=0.5)
        report = await runner.finished(run_id)
        assert time.monotonic() - began < 60
        print(f"dead after {time.monotonic() - began:.1f} s")
        assert (report.cause, report.proof) == (ExitCause.CANCELLED, ProofKind.EMPTY_SUBREAPER)
        assert nothing_survives() == []


async def test_cancel_that_comes_first_keeps_the_command_from_starting(open_runner: OpenRunner) -> None:
    async with open_runner() as runner:
        tally = runner.state_dir / "tally"
        causes = set()
        for _ in range(20):
            run_id = await runner.start("sh", "-c", f"echo x >> {tally}; exec sleep 1000")
            assert await runner.executor.cancel(run_id, grace=5) is CancelOutcome.REQUESTED
            report = await runner.finished(run_id)
            assert report.cause is ExitCause.CANCELLED
            causes.add(report.proof)
            if report.proof is ProofKind.NEVER_STARTED:
                assert report.started_at is None
        assert causes <= {ProofKind.NEVER_STARTED, ProofKind.EMPTY_SUBREAPER}


async def test_cancel_racing_with_exit_gives_one_true_end(open_runner: OpenRunner) -> None:
    async with open_runner() as runner:
        for attempt in range(20):
            run_id = await runner.start("sh", "-c", f"sleep 0.0{attempt % 5}; exit 6")
            await runner.started(run_id)
            await runner.executor.cancel(run_id, grace=5)
            report = await runner.finished(run_id)
            match report.cause:
                case ExitCause.EXITED:
                    assert (report.exit_code, report.proof) == (6, None)
                case cause:
                    assert (cause, report.proof) == (ExitCause.CANCELLED, ProofKind.EMPTY_SUBREAPER)


async def test_cancel_of_a_finished_or_unknown_run_changes_nothing(open_runner: OpenRunner) -> None:
    async with open_runner() as runner:
        run_id = await runner.start("true")
        report = await runner.finished(run_id)
        assert await runner.executor.cancel(run_id, grace=5) is CancelOutcome.ALREADY_FINISHED
        assert await runner.executor.cancel("unknown", grace=5) is CancelOutcome.UNKNOWN_RUN
        assert runner.known(run_id).exit == report


async def test_first_cancel_request_stands(open_runner: OpenRunner) -> None:
    async with open_runner() as runner:
        run_id = await runner.start("sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done")
        await runner.grown(run_id, b"up")
        await runner.executor.cancel(run_id, grace=0.1)
        await runner.executor.cancel(run_id, grace=1000)
        assert (await runner.finished(run_id)).cause is ExitCause.CANCELLED


async def test_stop_signals_to_the_supervisor_do_not_end_the_run(open_runner: OpenRunner) -> None:
    async with open_runner() as runner:
        run_id = await runner.start("sh", "-c", "echo up; read nothing; sleep 0.3; exit 2")
        await runner.started(run_id)
        supervisor = _supervisor_pid(runner.directory(run_id))
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD):
            os.kill(supervisor, number)
        report = await runner.finished(run_id)
        assert (report.cause, report.exit_code) == (ExitCause.EXITED, 2)


@pytest.fixture
def delegated_cgroup() -> Iterator[str]:
    """A cgroup of version 2 that is ours to divide."""
    for root in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")):
        path = root / f"shovey-test-{uuid.uuid4().hex}"
        if (root / "cgroup.controllers").exists() and os.access(root, os.W_OK):
            try:
                path.mkdir()
            except OSError:
                continue
            yield str(path)
            path.rmdir()  # fails, and so does the test, if a run's own group is left in it
            return
    pytest.skip("no writable cgroup of version 2 on this machine")


@pytest.mark.parametrize("program", [*_HOSTILE.values(), _STORM], ids=[*_HOSTILE.keys(), "fork storm"])
async def test_delegated_cgroup_gives_the_stronger_proof(
    open_runner: OpenRunner, nothing_survives: Survivors, delegated_cgroup: str, program: str
) -> None:
    async with open_runner(cgroup=delegated_cgroup) as runner:
        run_id = await runner.python(program)
        await runner.grown(run_id, b"ready")
        await runner.executor.cancel(run_id, grace=0.1)
        report = await runner.finished(run_id)
        assert (report.cause, report.proof) == (ExitCause.CANCELLED, ProofKind.EMPTY_CGROUP)
        assert nothing_survives() == []


async def test_background_child_keeps_its_cgroup_only_as_long_as_it_lives(
    open_runner: OpenRunner, delegated_cgroup: str
) -> None:
    async with open_runner(cgroup=delegated_cgroup) as runner:
        run_id = await runner.start("sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!")
        assert (await runner.finished(run_id)).exit_code == 0
        child = int(await runner.output(run_id))
        assert Path(f"/proc/{child}/cgroup").read_text().rstrip().endswith(run_id)
        pidfd = os.pidfd_open(child)
        os.kill(child, signal.SIGKILL)
        await trio.lowlevel.wait_readable(pidfd)
        os.close(pidfd)
        await runner.executor.forget(run_id)
    # The fixture fails the test if the group is still there.


async def test_cgroup_that_cannot_be_used_fails_the_run_before_it_starts(open_runner: OpenRunner) -> None:
    async with open_runner(cgroup="/proc/self") as runner:
        report = await runner.run("true")
        assert (report.cause, report.proof) == (ExitCause.SPAWN_FAILED, ProofKind.NEVER_STARTED)


def _supervisor_pid(directory: Path) -> int:
    import json

    return int(json.loads((directory / "supervisor.json").read_text())["pid"])
