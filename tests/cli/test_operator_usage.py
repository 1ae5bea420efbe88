"""What is refused before anybody is called, and that asking for help costs nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import CliRunner

from shovey_trio.cli.operator.main import cli
from shovey_trio.cli.text.failures import failure_of
from shovey_trio.core.errors import Code, Exit, NotFound
from shovey_trio.rpc.bridge import RpcError

HEAVY = {"grpc", "trio", "rich", "pydantic", "google.protobuf", "asyncio", "cryptography", "structlog", "yaml"}
JOB = "01a20202-d8f3-7000-8000-000000000001"


@pytest.mark.parametrize(
    "arguments",
    [
        ["job", "start", "hello"],
        ["job", "start", "hello", "web-1", "--all"],
        ["job", "start", "hello", "--match", "web-*", "--tag", "role=web"],
        ["job", "start", "hello", "--tag", "role"],
        ["job", "start", "hello", "--tag", "role=web", "--tag", "role=db"],
        ["job", "start", "hello", "web-1", "--timeout", "soon"],
        ["job", "start", "hello", "web-1", "--timeout", "0"],
        ["job", "start", "hello", "web-1", "--kill-grace", "-1s"],
        ["job", "status", JOB[:8]],
        ["job", "watch", f"{JOB}0"],
        ["job", "output", JOB, "--raw"],
        ["job", "output", JOB, "web-1", "--raw", "--timestamps"],
        ["job", "list", "--state", "finished"],
        ["job", "list", "-o", "xml"],
        ["node", "list", "--tag", "=web"],
        ["node", "list", "web-1"],
        ["job", "stop", JOB],
    ],
)
def test_misuse_is_exit_2_and_nobody_is_called(arguments: list[str]) -> None:
    # The settings name no existing file: whoever got as far as a call would fail for that, with another message.
    result = CliRunner().invoke(cli, ["--config", "absent.toml", *arguments])
    assert result.exit_code == Exit.USAGE.value
    assert "Usage:" in result.output
    assert "absent.toml" not in result.output


@pytest.mark.parametrize("arguments", [["--help"], ["job", "--help"], ["job", "start", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        "from shovey_trio.cli.operator.main import cli\n"
        f"cli.main({arguments!r}, prog_name='shovey', standalone_mode=False)\n"
        f"sys.exit(', '.join(sorted({HEAVY!r} & set(sys.modules))) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_a_reason_decides_the_exit_code_before_the_status_does() -> None:
    class Answer(RpcError):
        def __init__(self, reason: str) -> None:
            super().__init__(Code.UNAVAILABLE, "no")
            self.reason = reason

    draining, unknown = failure_of(Answer("DRAINING")), failure_of(Answer("NEVER_HEARD_OF"))
    assert draining is not None
    assert unknown is not None
    assert draining.exit_code == Exit.BUSY.value
    assert unknown.exit_code == Exit.UNREACHABLE.value


def test_a_message_of_many_lines_is_shown_on_one(capsys: pytest.CaptureFixture[str]) -> None:
    failed = failure_of(NotFound("first\n  second"))
    assert failed is not None
    failed.show()
    assert capsys.readouterr().err == "error: first second (NOT_FOUND)\n"


def test_bugs_are_not_dressed_up_as_failures() -> None:
    assert failure_of(RuntimeError("ours")) is None
