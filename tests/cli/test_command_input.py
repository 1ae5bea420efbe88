"""What the options of ``job start`` and ``explain`` give a command, and that no secret comes from a command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import OperatorRig


async def test_arguments_environment_stdin_and_account_reach_the_controller(rig: OperatorRig, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"\0data\n")
    given = ["--arg", "a=x=y", "--arg", "b=", "--env", "E=1", "--stdin", str(tmp_path / "data"), "--user", "www"]
    assert (await rig.run("job", "start", "hello", "web-1", *given)).code == 0
    (job,) = rig.controller.jobs.values()
    assert dict(job.request.args) == {"a": "x=y", "b": ""}
    assert dict(job.request.env) == {"E": "1"}
    assert (job.request.stdin, job.request.secret_stdin) == (b"\0data\n", False)
    assert job.request.user == "www"


async def test_secrets_are_read_from_files_without_their_last_newline(rig: OperatorRig, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hunter2\n")
    given = ["--env-secret", f"T=@{tmp_path / 'token'}", "--stdin", str(tmp_path / "token"), "--stdin-secret"]
    assert (await rig.run("job", "start", "hello", "web-1", *given)).code == 0
    (job,) = rig.controller.jobs.values()
    assert dict(job.request.secret_env) == {"T": "hunter2"}
    assert (job.request.stdin, job.request.secret_stdin) == (b"hunter2\n", True)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--env-secret", "T=hunter2"], "a secret is read from a file"),
        (["--env-secret", "T=@/no/such/file"], "cannot be read"),
        (["--env-secret", "T=@-", "--stdin", "-"], "read once only"),
        (["--stdin-secret"], "give both"),
        (["--arg", "novalue"], "NAME=VALUE"),
        (["--arg", "a=1", "--arg", "a=2"], "given twice"),
    ],
)
async def test_what_is_unclear_starts_nothing_and_shows_no_secret(
    rig: OperatorRig, given: list[str], said: str
) -> None:
    done = await rig.run("job", "start", "hello", "web-1", *given)
    assert done.code == 2
    assert said in done.err
    assert "hunter2" not in done.err
    assert not rig.controller.jobs
