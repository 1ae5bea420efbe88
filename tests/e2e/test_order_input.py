"""What an order carries to its command, what the node refuses of it, and that a secret is in the command alone."""

from __future__ import annotations

import json
import os
import pwd
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import trio

from lab.limits import within
from shovey_trio.demo.fleet import Fleet, NodeSpec
from shovey_trio.demo.operator import STDERR, Finished, Operator, request, state_of
from shovey_trio.v1 import job_service_pb2 as pb

pytestmark = pytest.mark.slow

NODES = ("web-1", "db-1")
# Prints what it was given, as JSON, so that a test sees exactly what arrived.
_SHOW = (
    "import json, os, sys; "
    "print(json.dumps({'argv': sys.argv[1:], 'env': {k: v for k, v in os.environ.items() if k.startswith('X_')},"
    " 'stdin': sys.stdin.buffer.read().decode('latin-1'), 'uid': os.getuid(), 'groups': os.getgroups(),"
    " 'home': os.environ['HOME'], 'umask': os.umask(0)}))"
)
SECRET = "pl4nted-s3cret-value"


def whitelist(directory: Path) -> Mapping[str, object]:
    python = [sys.executable, "-I", "-S", "-c"]
    leak = (
        f"import os, sys, time; s = os.environ.get('X_TOKEN') or sys.stdin.read(); print(len(s), s, flush=True); "
        f"print('err', s, file=sys.stderr); [(print(c, end='', flush=True), time.sleep(0.01)) for c in s]; "
        f"open({str(directory / 'began')!r}, 'w'); "
        f"[time.sleep(0.02) for _ in iter(lambda: os.path.exists({str(directory / 'go')!r}), True)]"
    )
    return {
        "show": {
            "argv": [
                *python,
                _SHOW.replace("{", "{{").replace("}", "}}"),
                "--name={name}",
                ["-n", "{count}"],
                "{file}",
            ],
            "args": {
                "name": {"pattern": "[ -~]+"},
                "count": {"type": "int", "max": 10, "optional": True},
                "file": {"type": "path", "under": ["/srv"], "default": "/srv/all"},
            },
            "env": {"X_FIXED": "fixed", "X_MODE": {"type": "enum", "values": ["fast", "slow"]}},
            "stdin": "1KiB",
            "umask": "027",
        },
        "as-nobody": {"argv": ["/bin/sh", "-c", "id -u; echo $HOME; id -G"], "users": ["nobody"]},
        "as-nobody-out": {"argv": ["/bin/sh", "-c", "echo reopened >/dev/stdout"], "user": "nobody"},
        "leak": {"argv": [*python, leak], "env": {"X_TOKEN": {"pattern": ".+"}}, "stdin": True},
        "limited": {
            "argv": [*python, "import resource as r; print(r.getrlimit(r.RLIMIT_CPU), r.getrlimit(r.RLIMIT_AS))"],
            "limits": {"cpu_seconds": 7, "memory": "4GiB"},
        },
        "locked": {"argv": ["sleep", "60"], "lock": "one", "timeout": 60},
        "plain": "true",
    }


@pytest.fixture(scope="module")
def fleet(keep_fleet: Any) -> Iterator[Fleet]:
    def nodes(directory: Path) -> list[NodeSpec]:
        return [NodeSpec(name=name, whitelist=whitelist(directory)) for name in NODES]

    with keep_fleet(nodes, serf=False) as fleet:
        yield fleet


def ask(command: str, *nodes: str, **given: Any) -> pb.StartJobRequest:
    asked = request(command, *(nodes or ("web-1",)))
    asked.MergeFrom(pb.StartJobRequest(**given))
    return asked


async def run(operator: Operator, asked: pb.StartJobRequest) -> Finished:
    return await operator.finished((await operator.client.start_job(asked)).job.id)


async def shown(operator: Operator, asked: pb.StartJobRequest) -> dict[str, Any]:
    finished = await run(operator, asked)
    assert finished.states() == {"web-1": "succeeded"}, finished.runs
    found: dict[str, Any] = json.loads(await operator.output(finished.job.id, "web-1"))
    return found


@within(60)
async def test_arguments_environment_and_stdin_arrive_as_they_were_given(operator: Operator) -> None:
    given = await shown(
        operator,
        ask("show", args={"name": "a b; $(x) -rf", "count": "3"}, env={"X_MODE": "fast"}, stdin=b"\0line\nrest"),
    )
    assert given["argv"] == ["--name=a b; $(x) -rf", "-n", "3", "/srv/all"]
    assert given["env"] == {"X_FIXED": "fixed", "X_MODE": "fast"}
    assert given["stdin"] == "\0line\nrest"
    assert given["umask"] == 0o027
    assert (await shown(operator, ask("show", args={"name": "x"})))["argv"] == ["--name=x", "/srv/all"]


@within(60)
@pytest.mark.parametrize(
    ("cause", "given"),
    [
        ("argument_not_permitted", {"args": {"name": "x", "other": "1"}}),
        ("argument_mismatch", {"args": {"name": "x\n"}}),
        ("argument_mismatch", {"args": {"name": "x", "count": "11"}}),
        ("argument_mismatch", {"args": {"name": "x", "file": "/srv/../etc/shadow"}}),
        ("argument_mismatch", {}),
        ("env_not_permitted", {"args": {"name": "x"}, "env": {"LD_PRELOAD": "/tmp/x.so"}}),
        ("env_not_permitted", {"args": {"name": "x"}, "env": {"X_MODE": "other"}}),
        ("env_not_permitted", {"args": {"name": "x"}, "secret_env": {"X_FIXED": "mine"}}),
        ("stdin_not_permitted", {"args": {"name": "x"}, "stdin": bytes(1025)}),
        ("user_not_permitted", {"args": {"name": "x"}, "user": "root"}),
    ],
)
async def test_node_refuses_what_its_entry_does_not_permit(
    operator: Operator, cause: str, given: dict[str, Any]
) -> None:
    finished = await run(operator, ask("show", **given))
    assert state_of(finished.runs["web-1"]) == "nacked"
    assert finished.runs["web-1"].cause == cause


@within(60)
async def test_job_shows_its_input_and_neither_stdin_nor_secrets(operator: Operator) -> None:
    asked = ask("show", args={"name": "x"}, env={"X_MODE": "slow"}, stdin=b"12345")
    kept = (await operator.client.get_job((await run(operator, asked)).job.id)).input
    assert (dict(kept.args), dict(kept.env), kept.stdin_bytes) == ({"name": "x"}, {"X_MODE": "slow"}, 5)
    assert (kept.secret_env, kept.secret_stdin) == ([], False)


@within(60)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another account")
async def test_command_runs_as_the_account_the_order_chose(operator: Operator) -> None:
    nobody = pwd.getpwnam("nobody")
    finished = await run(operator, ask("as-nobody", user="nobody"))
    uid, home, groups = (await operator.output(finished.job.id, "web-1")).decode().splitlines()
    assert (uid, home) == (str(nobody.pw_uid), nobody.pw_dir)
    assert "0" not in groups.split()
    finished = await run(operator, ask("as-nobody"))
    assert (await operator.output(finished.job.id, "web-1")).startswith(b"0\n")


@within(60)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another account")
async def test_another_account_can_open_its_standard_output(operator: Operator) -> None:
    finished = await run(operator, ask("as-nobody-out"))
    assert await operator.output(finished.job.id, "web-1") == b"reopened\n"


@within(60)
async def test_limits_reach_the_command(operator: Operator) -> None:
    finished = await run(operator, ask("limited"))
    output = (await operator.output(finished.job.id, "web-1")).decode()
    assert output.startswith("(7, 7) ")
    assert str(4 * 2**30) in output


@within(60)
async def test_second_holder_of_a_lock_is_refused_as_busy(operator: Operator) -> None:
    first = await operator.start("locked", "web-1")
    await operator.reached(first, "web-1", "running")
    second = await run(operator, ask("locked"))
    assert (state_of(second.runs["web-1"]), second.runs["web-1"].cause) == ("nacked", "busy")
    await operator.client.cancel_job(first)
    await operator.finished(first)
    third = await operator.start("locked", "web-1")
    await operator.reached(third, "web-1", "running")
    await operator.client.cancel_job(third)
    await operator.finished(third)


@within(90)
@pytest.mark.parametrize("way", ["env", "stdin"])
async def test_planted_secret_is_in_no_file_no_command_line_and_no_answer(
    operator: Operator, fleet: Fleet, way: str
) -> None:
    began, go = fleet.directory / "began", fleet.directory / "go"
    began.unlink(missing_ok=True)
    go.unlink(missing_ok=True)
    secret: dict[str, Any] = (
        {"secret_env": {"X_TOKEN": SECRET}} if way == "env" else {"stdin": SECRET.encode(), "secret_stdin": True}
    )
    job = (await operator.client.start_job(ask("leak", **secret))).job
    await exists(began)
    # While it runs, and again afterwards: what is deleted at the end must not have been there before.
    assert await trio.to_thread.run_sync(where_is, SECRET.encode(), fleet.directory) == []
    go.touch()
    finished = await operator.finished(job.id)
    assert finished.states() == {"web-1": "succeeded"}
    # Letter by letter, each in a write of its own, it is found as well.
    length = len(SECRET)
    assert await operator.output(job.id, "web-1") == f"{length} [redacted]\n[redacted]".encode()
    assert await operator.output(job.id, "web-1", STDERR) == b"err [redacted]\n"
    assert SECRET not in str(finished)
    kept = finished.job.input
    assert (kept.secret_env, kept.secret_stdin) == ((["X_TOKEN"], False) if way == "env" else ([], True))
    assert await trio.to_thread.run_sync(where_is, SECRET.encode(), fleet.directory) == []


@within(60)
async def test_refused_secret_is_in_no_file_either(operator: Operator, fleet: Fleet) -> None:
    finished = await run(operator, ask("plain", secret_env={"X_OTHER": SECRET}))
    assert finished.runs["web-1"].cause == "env_not_permitted"
    assert SECRET not in str(finished)
    assert await trio.to_thread.run_sync(where_is, SECRET.encode(), fleet.directory) == []


async def exists(path: Path) -> None:
    """Waits until a command has made a file."""
    while True:
        if path.exists():
            return
        await trio.sleep(0.02)


def where_is(secret: bytes, directory: Path) -> list[str]:
    """Every file below a directory, and every command line of the machine, that has the secret in it."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    lines = Path("/proc").glob("[0-9]*/cmdline")
    found = []
    for path in (*files, *lines):
        try:
            data = path.read_bytes()
        except OSError:
            continue
        if secret in data:
            found.append(str(path))
    return found


@within(120)
@pytest.mark.parametrize("sensitive", [True, False])
async def test_restarted_controller_has_stdin_and_no_secrets(fleet: Fleet, operator: Operator, sensitive: bool) -> None:
    """A node that has not accepted by then gets an order with what is stored, or its run ends with the reason."""
    agent = fleet.nodes["db-1"].agent
    await agent.kill()
    asked = ask("show", "db-1", args={"name": "x"}, stdin=b"stored or lost", secret_stdin=sensitive)
    job = (await operator.client.start_job(asked)).job
    assert not job.finished_at.seconds, "the node counted as down at once"
    await fleet.controller.stop()
    await fleet.controller.start()
    await fleet.wait_ready()
    await agent.start()
    finished = await operator.finished(job.id)
    [ended] = finished.runs.values()
    if sensitive:
        assert (state_of(ended), ended.cause) == ("unavailable", "secret_lost")
    else:
        assert json.loads(await operator.output(job.id, "db-1"))["stdin"] == "stored or lost"
    await fleet.wait_up()
