"""The clients of examples/ start real jobs on a real fleet, with nothing but what they say they need."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from shovey_trio.demo.fleet import Fleet, NodeSpec, open_fleet

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
HELLO = "sh -c 'echo hello from $SHOVEY_NODE; sleep 0.2; printf \"größe\\0no newline\"'"
FAILS = "sh -c 'echo the disk is full >&2; exit 3'"

pytestmark = pytest.mark.slow


async def installed(command: Sequence[str], *, directory: Path, what: str) -> None:
    """Runs an installer; skips where the package registry cannot be reached."""
    done = await trio.run_process(
        command, cwd=directory, check=False, stdin=b"", capture_stdout=True, capture_stderr=True
    )
    if done.returncode:
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        pytest.skip(f"{what} could not be installed: {' '.join(last)}")


async def check_client(client: Sequence[str], directory: Path) -> None:
    """A client that starts a job shows its output, how it ended on each node, and says so by its exit code."""
    whitelist = {"hello": HELLO, "fails": FAILS}
    nodes = [NodeSpec(name=name, whitelist=whitelist) for name in ("web-1", "web-2")]
    fleet_directory = directory / "fleet"
    fleet_directory.mkdir()
    async with open_fleet(fleet_directory, nodes, serf=False) as fleet:
        code, lines, _ = await run_client(client, fleet, "hello", "web-1", "web-2")
        assert code == 0
        assert lines[0].startswith("job ")
        assert sorted(lines[1:5]) == [
            "web-1 | größe\0no newline",
            "web-1 | hello from web-1",
            "web-2 | größe\0no newline",
            "web-2 | hello from web-2",
        ]
        assert lines[5:] == ["web-1: succeeded, exit code 0", "web-2: succeeded, exit code 0", "job complete"]

        code, lines, _ = await run_client(client, fleet, "fails", "web-2")
        assert (code, lines[1:]) == (1, ["web-2 | the disk is full", "web-2: failed, exit code 3", "job complete"])

        code, lines, _ = await run_client(client, fleet, "no-such-entry", "web-1")
        assert (code, lines[1:]) == (1, ["web-1: nacked", "job complete"])

        code, lines, errors = await run_client(client, fleet, "hello", "web-9")
        assert (code, lines) == (2, [])
        assert errors.startswith("NOT_FOUND: ")
        assert "web-9" in errors


async def run_client(client: Sequence[str], fleet: Fleet, *arguments: str) -> tuple[int, list[str], str]:
    server, _, _ = fleet.client_tls()
    credentials = str(fleet.client_directory.root)
    done = await trio.run_process(
        [*client, "--server", server, "--credentials", credentials, *arguments],
        check=False,
        stdin=b"",
        capture_stdout=True,
        capture_stderr=True,
    )
    # Not splitlines(): a NUL or a form feed in the output is no end of a line.
    lines = done.stdout.decode().removesuffix("\n").split("\n") if done.stdout else []
    return done.returncode, lines, done.stderr.decode()


async def test_the_python_client_needs_grpcio_alone(tmp_path: Path) -> None:
    with trio.fail_after(110):
        environment = tmp_path / "venv"
        await trio.run_process([sys.executable, "-m", "venv", "--without-pip", str(environment)])
        python = str(environment / "bin" / "python")
        requirements = str(EXAMPLES / "python" / "requirements.txt")
        await installed(
            [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "-r", requirements],
            directory=tmp_path,
            what="grpcio",
        )
        known = await trio.run_process([python, "-I", "-c", "import shovey_trio"], capture_stderr=True, check=False)
        assert known.returncode, "the example's environment must not hold the project itself"
        await check_client([python, str(EXAMPLES / "python" / "run_job.py")], tmp_path)


async def test_the_nodejs_client_needs_the_proto_files_alone(tmp_path: Path) -> None:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("Node.js with npm is not installed")
    with trio.fail_after(110):
        # Installed beside a copy, so that the repository stays as it is.
        copy = tmp_path / "nodejs"
        copy.mkdir()
        for name in ("package.json", "run-job.js"):
            shutil.copy(EXAMPLES / "nodejs" / name, copy / name)
        await installed(
            [npm, "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"],
            directory=copy,
            what="@grpc/grpc-js",
        )
        await check_client([node, str(copy / "run-job.js"), "--proto", str(ROOT / "proto")], tmp_path)
