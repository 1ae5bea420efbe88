"""What a run is given reaches its command once, and stays nowhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shovey_agent.run.accounts import Account, AccountUnusable, resolve_account
from shovey_agent.run.runs import ExecutorRefusal, ExitCause, Refused
from shovey_agent.supervisor.spool_files import INPUT, RecordUnreadable, encode_input, take_input, write_file
from shovey_trio.core.jobs.command_input import Secrets
from shovey_trio.core.whitelist.entry import Limits

from .conftest import OpenRunner

SECRET = "pl4nted-s3cret"


def files_with(secret: str, directory: Path) -> list[str]:
    return [path.name for path in directory.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


async def test_stdin_is_all_there_and_then_ends(open_runner: OpenRunner) -> None:
    data = bytes(range(256)) * 1000
    async with open_runner() as runner:
        run_id = await runner.start("/bin/cat", stdin=data)
        assert (await runner.finished(run_id)).exit_code == 0
        assert await runner.output(run_id) == data
        assert not (runner.directory(run_id) / INPUT).exists()


async def test_without_stdin_the_command_reads_nothing(open_runner: OpenRunner) -> None:
    async with open_runner() as runner:
        run_id = await runner.start("/bin/cat")
        assert (await runner.finished(run_id)).exit_code == 0
        assert await runner.output(run_id) == b""


async def test_secret_reaches_the_environment_and_no_file(open_runner: OpenRunner) -> None:
    async with open_runner() as runner:
        secrets = Secrets(env={"TOKEN": SECRET})
        run_id = await runner.start("/bin/sh", "-c", 'echo "${#TOKEN} $TOKEN"; sleep 60', secrets=secrets)
        await runner.grown(run_id, b"[redacted]")
        assert files_with(SECRET, runner.state_dir) == []
        await runner.executor.cancel(run_id, grace=0.0)
        await runner.finished(run_id)
        assert await runner.output(run_id) == f"{len(SECRET)} [redacted]\n".encode()
        assert files_with(SECRET, runner.state_dir) == []


async def test_beginning_of_a_secret_that_was_none_is_shown_at_the_end(open_runner: OpenRunner) -> None:
    async with open_runner() as runner:
        secrets = Secrets(env={"TOKEN": SECRET})
        run_id = await runner.start("/bin/sh", "-c", "printf pl4nted-s", secrets=secrets)
        assert (await runner.finished(run_id)).output_bytes == len("pl4nted-s")
        assert await runner.output(run_id) == b"pl4nted-s"


async def test_run_that_could_not_be_started_keeps_no_secret(open_runner: OpenRunner) -> None:
    async with open_runner() as runner:
        report = await runner.run("/no/such/program", secrets=Secrets(env={"TOKEN": SECRET}))
        assert report.cause is ExitCause.SPAWN_FAILED
        assert files_with(SECRET, runner.state_dir) == []


async def test_lock_and_concurrency_are_kept_until_their_holder_has_ended(open_runner: OpenRunner) -> None:
    async with open_runner() as runner:
        for limit in ({"lock": "one"}, {"concurrency": 1}):
            first = await runner.start("/bin/sleep", "60", **limit)
            refused = await runner.executor.start(runner.spec("/bin/true", **limit))
            assert isinstance(refused, Refused)
            assert refused.reason is ExecutorRefusal.BUSY
            await runner.executor.cancel(first, grace=0.0)
            await runner.finished(first)
            assert (await runner.run("/bin/true", **limit)).exit_code == 0


async def test_lock_outlives_the_agent_that_took_it(open_runner: OpenRunner) -> None:
    async with open_runner() as runner:
        first = await runner.start("/bin/sleep", "60", lock="one")
    async with open_runner() as runner:
        refused = await runner.executor.start(runner.spec("/bin/true", lock="one"))
        assert isinstance(refused, Refused)
        await runner.executor.cancel(first, grace=0.0)
        await runner.finished(first)


async def test_limits_and_niceness_are_the_commands_own(open_runner: OpenRunner) -> None:
    async with open_runner() as runner:
        limits = Limits(cpu_seconds=1, open_files=32, memory=2**32)
        run_id = await runner.start("/bin/sh", "-c", "ulimit -t; ulimit -n; nice", limits=limits, nice=5)
        assert (await runner.finished(run_id)).exit_code == 0
        words = (await runner.output(run_id)).decode().split()
        assert words[-1] == str(os.nice(0) + 5)
        assert {"1", "32"} <= set(words)


async def test_processor_time_is_cut_off(open_runner: OpenRunner) -> None:
    async with open_runner(hard_limit=60.0) as runner:
        report = await runner.run("/bin/sh", "-c", "while :; do :; done", limits=Limits(cpu_seconds=1))
        assert report.signal is not None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another account")
async def test_other_account_is_killed_with_its_whole_tree(open_runner: OpenRunner) -> None:
    account = resolve_account("nobody", "")
    assert isinstance(account, Account)
    async with open_runner() as runner:
        script = 'trap "" TERM; setsid sleep 600 & id -u; while :; do sleep 0.1; done'
        run_id = await runner.start("/bin/sh", "-c", script, account=account)
        await runner.grown(run_id, f"{account.uid}\n".encode())
        await runner.executor.cancel(run_id, grace=0.1)
        report = await runner.finished(run_id)
        assert report.cause is ExitCause.CANCELLED
        assert report.proof is not None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another account")
async def test_command_of_another_account_can_neither_stop_its_supervisor_nor_see_the_spool(
    open_runner: OpenRunner,
) -> None:
    account = resolve_account("nobody", "")
    async with open_runner() as runner:
        spool = runner.directory("x").parent
        script = f"for signal in STOP KILL USR1; do kill -$signal $PPID && echo $signal; done; ls {spool} && echo spool"
        run_id = await runner.start("/bin/sh", "-c", f"({script}) 2>/dev/null; echo end", account=account)
        assert (await runner.finished(run_id)).exit_code == 0
        assert await runner.output(run_id) == b"end\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another account")
async def test_command_of_another_account_goes_with_its_supervisor(open_runner: OpenRunner) -> None:
    account = resolve_account("nobody", "")
    async with open_runner() as runner:
        run_id = await runner.start("/bin/sh", "-c", "exec sleep 600", account=account)
        await runner.started(run_id)
        supervisor = runner.directory(run_id) / "supervisor.json"
        os.kill(int(supervisor.read_text().partition('"pid": ')[2].partition(",")[0]), 9)
        # The fixture fails the test if the command is left.
        assert (await runner.finished(run_id)).cause is ExitCause.SUPERVISOR_LOST


def test_accounts_that_are_not_there_are_refused_by_name() -> None:
    with pytest.raises(AccountUnusable, match="no account no-such-user"):
        resolve_account("no-such-user", "")
    with pytest.raises(AccountUnusable, match="no group no-such-group"):
        resolve_account("", "no-such-group")
    assert resolve_account("", "") is None


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b'{"format": 1}', b'{"format": 1, "stdin": 5, "env": {}, "redact": []}']
)
def test_damaged_input_is_refused_and_gone(tmp_path: Path, text: bytes) -> None:
    write_file(str(tmp_path / INPUT), text, durable=False)
    with pytest.raises(RecordUnreadable):
        take_input(str(tmp_path))
    assert not (tmp_path / INPUT).exists()


def test_input_is_taken_once(tmp_path: Path) -> None:
    text = encode_input(stdin=b"\xff", env={"A": "b"}, redact=[b"secret"])
    write_file(str(tmp_path / INPUT), text, durable=False)
    assert take_input(str(tmp_path)) == (b"\xff", {"A": "b"}, [b"secret"])
    assert take_input(str(tmp_path)) == (b"", {}, [])
