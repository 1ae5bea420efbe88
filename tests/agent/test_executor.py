"""Starting commands: what they are given, how they end, and that each of them starts once."""

from __future__ import annotations

import json
import os
import resource
import stat
import time
from dataclasses import replace
from typing import Any

import pytest
import trio

from shovey_agent.run.runs import Accepted, Duplicate, ExecutorRefusal, ExitCause, Refused, RunPhase, StartOutcome
from shovey_agent.run.spool import Spool, SpoolLimits
from shovey_agent.run.state_lock import StateDirectoryTaken
from shovey_agent.supervisor.proc_posix import boot_id
from shovey_trio.core.jobs.model import ProofKind, StreamName

from .conftest import OpenRunner


@pytest.mark.parametrize("code", [0, 1, 44, 127, 255])
async def test_exit_code_is_reported_as_it_is(open_runner: OpenRunner, code: int) -> None:
    async with open_runner() as runner:
        report = await runner.run("sh", "-c", f"exit {code}")
        assert (report.cause, report.exit_code, report.signal) == (ExitCause.EXITED, code, None)
        assert report.proof is None


@pytest.mark.parametrize("number", [1, 9, 11, 15])
async def test_death_by_signal_is_reported_as_that_signal(open_runner: OpenRunner, number: int) -> None:
    async with open_runner() as runner:
        report = await runner.run("sh", "-c", f"ulimit -c 0; kill -{number} $$")
        assert (report.cause, report.exit_code, report.signal) == (ExitCause.SIGNALLED, None, number)


async def test_program_that_does_not_exist_is_spawn_failed_with_the_reason(open_runner: OpenRunner) -> None:
    async with open_runner() as runner:
        report = await runner.run("no-such-program")
        assert report.cause is ExitCause.SPAWN_FAILED
        assert report.proof is ProofKind.NEVER_STARTED
        assert report.detail == "no-such-program: No such file or directory"
        assert report.started_at is None


async def test_directory_that_does_not_exist_is_spawn_failed(open_runner: OpenRunner) -> None:
    async with open_runner() as runner:
        report = await runner.run("true", cwd="/no/such/directory")
        assert report.cause is ExitCause.SPAWN_FAILED
        assert "/no/such/directory" in report.detail


async def test_script_without_interpreter_line_is_not_given_to_a_shell(open_runner: OpenRunner) -> None:
    async with open_runner() as runner:
        script = runner.state_dir / "script"
        script.write_text("echo ran\n")
        script.chmod(0o700)
        report = await runner.run(str(script))
        assert report.cause is ExitCause.SPAWN_FAILED
        assert "Exec format error" in report.detail


async def test_arguments_reach_the_program_unchanged(open_runner: OpenRunner) -> None:
    words = ["a b", "$HOME", "*", ";", "", "ü", "-x"]
    async with open_runner() as runner:
        run_id = await runner.python("import sys, json; print(json.dumps(sys.argv[1:]))", *words)
        await runner.finished(run_id)
        assert json.loads(await runner.output(run_id)) == words


async def test_environment_holds_nothing_of_the_agents_own(
    open_runner: OpenRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_SECRET", "x")
    async with open_runner() as runner:
        spec = runner.spec("env", env={"COLOUR": "red", "SHOVEY_RUN_ID": "forged"})
        await runner.executor.start(spec)
        await runner.finished(spec.run_id)
        lines = (await runner.output(spec.run_id)).decode().splitlines()
    environment = dict(line.split("=", 1) for line in lines)
    assert set(environment) == {
        "PATH",
        "LANG",
        "HOME",
        "USER",
        "SHOVEY_JOB_ID",
        "SHOVEY_RUN_ID",
        "SHOVEY_NODE",
        "COLOUR",
    }
    assert environment["COLOUR"] == "red"
    assert environment["SHOVEY_RUN_ID"] == spec.run_id


async def test_command_has_its_own_session_an_empty_stdin_and_no_other_descriptors(open_runner: OpenRunner) -> None:
    program = (
        "import os, sys, json, signal\n"
        "print(json.dumps({'leads': os.getsid(0) == os.getpgid(0) == os.getpid(), 'stdin': sys.stdin.read(),"
        "'fds': [fd for fd in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{fd}')],"
        "'cwd': os.getcwd(), 'umask': os.umask(0),"
        "'status': [l.split() for l in open('/proc/self/status') if l.startswith(('SigBlk', 'SigIgn'))]}))"
    )
    async with open_runner() as runner:
        run_id = await runner.python(program, cwd="/usr", umask=0o027)
        await runner.finished(run_id)
        seen = json.loads(await runner.output(run_id))
    assert seen["leads"]
    assert seen["stdin"] == ""
    assert sorted(seen["fds"]) == ["0", "1", "2"]
    assert (seen["cwd"], seen["umask"]) == ("/usr", 0o027)
    ignored = {name: int(mask, 16) for name, mask in seen["status"]}
    # Python itself ignores SIGPIPE (13) and SIGXFSZ (25) in the command under test; nothing else may be.
    assert ignored == {"SigBlk:": 0, "SigIgn:": 1 << 12 | 1 << 24}


async def test_broken_pipe_ends_a_command_as_it_does_in_a_shell(open_runner: OpenRunner) -> None:
    async with open_runner() as runner:
        run_id = await runner.start("bash", "-c", "yes | head -1; echo ${PIPESTATUS[0]}")
        await runner.finished(run_id)
        assert await runner.output(run_id) == b"y\n141\n"


async def test_both_streams_keep_their_order_of_arrival(open_runner: OpenRunner) -> None:
    program = "import os, time\nfor i in range(20):\n    os.write(1 + i % 2, b'%d\\n' % i)\n    time.sleep(0.005)\n"
    async with open_runner() as runner:
        run_id = await runner.python(program)
        await runner.finished(run_id)
        chunks = await runner.chunks(run_id)
    joined = b"".join(chunk.data for chunk in chunks)
    assert sorted(int(line) for line in joined.split()) == list(range(20))
    assert {chunk.stream for chunk in chunks} == set(StreamName)
    assert [chunk.read_at for chunk in chunks] == sorted(chunk.read_at for chunk in chunks)


async def test_started_and_phase_are_told_while_the_command_runs(open_runner: OpenRunner) -> None:
    async with open_runner() as runner:
        run_id = await runner.start("sleep", "1000")
        started = await runner.started(run_id)
        known = runner.known(run_id)
        assert known.phase is RunPhase.RUNNING
        assert known.started_at == started.at
        await runner.executor.cancel(run_id, grace=5)
        assert (await runner.finished(run_id)).started_at == pytest.approx(started.at)
        assert runner.known(run_id).phase is RunPhase.FINISHED


async def test_short_output_is_readable_while_the_command_runs(open_runner: OpenRunner) -> None:
    async with open_runner() as runner:
        run_id = await runner.start("sh", "-c", "echo now; exec sleep 1000")
        await runner.grown(run_id, b"now\n")
        assert runner.known(run_id).phase is RunPhase.RUNNING
        await runner.executor.cancel(run_id, grace=5)
        await runner.finished(run_id)


async def test_thousand_starts_of_one_order_run_it_once(open_runner: OpenRunner) -> None:
    async with open_runner() as runner:
        tally = runner.state_dir / "tally"
        spec = runner.spec("sh", "-c", f"echo x >> {tally}")
        outcomes: list[StartOutcome] = []

        async def deliver() -> None:
            outcomes.extend([await runner.executor.start(spec) for _ in range(100)])

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(deliver)
        await runner.finished(spec.run_id)
        again = await runner.executor.start(spec)
        assert isinstance(again, Duplicate)
        assert again.run.phase is RunPhase.FINISHED
        assert [type(outcome) for outcome in outcomes].count(Accepted) == 1
        assert len(outcomes) == 1000
        assert tally.read_text() == "x\n"


async def test_limit_of_commands_is_refused_as_busy_and_frees_itself(open_runner: OpenRunner) -> None:
    async with open_runner(max_runs=1) as runner:
        run_id = await runner.start("sleep", "1000")
        refused = await runner.executor.start(runner.spec("true"))
        assert isinstance(refused, Refused)
        assert refused.reason is ExecutorRefusal.BUSY
        await runner.executor.cancel(run_id, grace=5)
        await runner.finished(run_id)
        assert (await runner.run("true")).exit_code == 0


async def test_spool_below_its_floor_of_free_space_refuses_and_leaves_nothing(open_runner: OpenRunner) -> None:
    async with open_runner(limits=SpoolLimits(min_free=1 << 60)) as runner:
        refused = await runner.executor.start(runner.spec("true"))
        assert isinstance(refused, Refused)
        assert refused.reason is ExecutorRefusal.SPOOL_FULL
        assert list((runner.state_dir / "runs").iterdir()) == []


async def test_full_spool_refuses_runs_until_a_reported_one_is_forgotten(open_runner: OpenRunner) -> None:
    async with open_runner(limits=SpoolLimits(total_cap=200_000)) as runner:
        first = await runner.python("import sys; sys.stdout.write('x' * 300_000)")
        await runner.finished(first)
        refused = await runner.executor.start(runner.spec("true", run_id="late"))
        assert isinstance(refused, Refused)
        assert refused.reason is ExecutorRefusal.SPOOL_FULL
        assert not runner.directory("late").exists()
        await runner.executor.forget(first)
        assert (await runner.finished(await runner.start("true"))).exit_code == 0


async def test_disk_that_fills_up_during_accept_refuses_and_leaves_nothing(open_runner: OpenRunner) -> None:
    async with open_runner() as runner:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        try:
            refused = await runner.executor.start(runner.spec("true"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert isinstance(refused, Refused)
        assert refused.reason is ExecutorRefusal.SPOOL_FULL
        assert list((runner.state_dir / "runs").iterdir()) == []
        assert (await runner.run("true")).exit_code == 0


@pytest.mark.parametrize("run_id", ["../x", "a/b", ".", "", "x" * 65, "a\n", "ü"])
async def test_run_id_that_is_no_plain_name_is_refused(open_runner: OpenRunner, run_id: str) -> None:
    async with open_runner() as runner:
        spec = runner.spec("true", run_id="x")
        refused = await runner.executor.start(replace(spec, run_id=run_id))
        assert isinstance(refused, Refused)
        assert refused.reason is ExecutorRefusal.INVALID_SPEC


@pytest.mark.parametrize(
    "change",
    [{"timeout": 0}, {"timeout": float("nan")}, {"grace": -1}, {"argv": ()}, {"argv": ("a\0b",)}, {"env": {"A": "\0"}}],
)
async def test_spec_that_cannot_be_run_is_refused(open_runner: OpenRunner, change: dict[str, Any]) -> None:
    async with open_runner() as runner:
        spec = runner.spec("true")
        refused = await runner.executor.start(replace(spec, **change))
        assert isinstance(refused, Refused)
        assert refused.reason is ExecutorRefusal.INVALID_SPEC


async def test_spool_is_private_and_holds_the_order_as_received(open_runner: OpenRunner) -> None:
    async with open_runner() as runner:
        spec = runner.spec("true", order=b"\x00order\xff", signature=b"signature")
        await runner.executor.start(spec)
        await runner.finished(spec.run_id)
        directory = runner.directory(spec.run_id)
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in directory.iterdir())
        assert (directory / "order").read_bytes() == b"\x00order\xffsignature"


async def test_forgetting_a_finished_run_removes_it_and_a_running_one_is_kept(open_runner: OpenRunner) -> None:
    async with open_runner() as runner:
        done = await runner.start("true")
        await runner.finished(done)
        await runner.executor.mark_reported(done)
        assert runner.known(done).reported
        running = await runner.start("sleep", "1000")
        assert await runner.executor.forget(done)
        assert not await runner.executor.forget(running)
        assert [path.name for path in (runner.state_dir / "runs").iterdir()] == [running]
        await runner.executor.cancel(running, grace=5)
        await runner.finished(running)


async def test_run_whose_directory_nobody_has_adopted_is_taken_as_it_is_and_not_started_again(
    open_runner: OpenRunner,
) -> None:
    async with open_runner() as runner:
        ended = runner.spec("false")
        await runner.executor.start(ended)
        await runner.finished(ended.run_id)
        waiting = runner.spec("sh", "-c", "echo once")
    async with open_runner() as runner:
        # Put there behind the back of an agent that has looked already.
        moved = runner.directory("run-moved")
        runner.directory(ended.run_id).rename(moved)
        found = await runner.executor.start(replace(ended, run_id="run-moved"))
        assert isinstance(found, Duplicate)
        assert found.run.exit is not None
        assert (found.run.run_id, found.run.phase, found.run.exit.exit_code) == ("run-moved", RunPhase.FINISHED, 1)
        assert runner.executor.known_run("run-moved") == found.run
        spool = Spool(runner.state_dir, SpoolLimits())
        spool.create(waiting, accepted_at=time.time(), boot_id=boot_id(), cgroup=None)
        found = await runner.executor.start(waiting)
        assert isinstance(found, Duplicate)
        assert found.run.phase is RunPhase.ACCEPTED
        assert (await runner.finished(waiting.run_id)).exit_code == 0
        assert await runner.output(waiting.run_id) == b"once\n"


async def test_cancelled_start_leaves_a_run_that_is_whole_or_none_at_all(open_runner: OpenRunner) -> None:
    async with open_runner() as runner:
        for deadline in (0, 0.0005, 0.001, 0.002, 0.005):
            spec = runner.spec("true")
            with trio.move_on_after(deadline):
                await runner.executor.start(spec)
            if runner.executor.known_run(spec.run_id) is not None:
                assert (await runner.finished(spec.run_id)).exit_code == 0
            else:
                assert not runner.directory(spec.run_id).exists()


async def test_second_agent_on_a_state_directory_says_who_holds_it_and_touches_no_run(
    open_runner: OpenRunner,
) -> None:
    async with open_runner() as runner:
        run_id = await runner.start("sh", "-c", "sleep 0.5; exit 3")
        with pytest.raises(StateDirectoryTaken) as refused:
            async with open_runner():
                pass
        assert f"process {os.getpid()};" in str(refused.value)
        assert (await runner.finished(run_id)).exit_code == 3
