"""knife-shove's client against the shim, as a process: signed by knife's own signing code, looping as knife loops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from shovey_trio.core.errors import StoreUnavailable
from shovey_trio.core.jobs.events import ReportOutcome
from shovey_trio.core.jobs.model import ProofKind, StreamName
from shovey_trio.core.jobs.states import RunState
from shovey_trio.core.trust.orders import RefusalReason

from .conftest import NEVER_UP, Shim, key_of
from .knife import Knife, make_knife

OUT, ERR = StreamName.STDOUT, StreamName.STDERR
OUTPUT = ((OUT, b"one\n"), (ERR, b"two\n"), (OUT, "dreié\n".encode()))

# How a run ends → what knife calls it, and how `job start` exits.
ENDS: dict[str, tuple[dict[str, Any], str, int]] = {
    "succeeded": ({"output": OUTPUT}, "succeeded", 0),
    "failed": ({"output": OUTPUT, "exit_code": 3}, "failed", 1),
    "signalled": ({"output": OUTPUT, "exit_code": None, "signal": 9}, "failed", 1),
    "timed out": (
        {
            "output": OUTPUT,
            "outcome": ReportOutcome.TIMED_OUT,
            "exit_code": None,
            "proof": ProofKind.EMPTY_SUBREAPER,
        },
        "failed",
        1,
    ),
    "crashed": ({"output": OUTPUT, "outcome": ReportOutcome.CRASHED, "exit_code": None}, "failed", 1),
    "nacked": ({"refuse": RefusalReason.NOT_WHITELISTED}, "nacked", 0),
    "invalid": ({"refuse": RefusalReason.BAD_SIGNATURE}, "invalid", 1),
}


def knife_of(shim: Shim, directory: Path, **fields: Any) -> Knife:
    return make_knife(directory, port=shim.server.port, user="admin", key=key_of("admin"), **fields)


@pytest.mark.parametrize("end", ENDS)
async def test_start_and_stream_end_for_every_end_of_a_run_with_each_byte_once(
    shim: Shim, tmp_path: Path, end: str
) -> None:
    script, status, code = ENDS[end]
    shim.script(**script)
    knife = knife_of(shim, tmp_path)
    started = await knife("job", "start", "work", "web-1", "--timeout", "20")
    assert (started.code, started.last) == (code, {"status": "complete", "nodes": {status: ["web-1"]}}), started.err
    streamed = await knife("job", "stream", started.lines[0]["id"], "web-1")
    printed = ("one\ndreié\n", "two\n") if "output" in script else ("", "")
    assert (streamed.code, streamed.out, streamed.err) == (0, *printed)


async def test_stream_that_is_followed_from_the_beginning_prints_each_byte_once(shim: Shim, tmp_path: Path) -> None:
    shim.script(run_for=None, output=OUTPUT)
    knife = knife_of(shim, tmp_path)
    job_id = await shim.start("web-1")
    await shim.until(job_id, "web-1", RunState.RUNNING)
    async with trio.open_nursery() as nursery:

        async def follow() -> None:
            streamed = await knife("job", "stream", job_id, "web-1")
            assert (streamed.code, streamed.out, streamed.err) == (0, "one\ndreié\n", "two\n")

        nursery.start_soon(follow)
        cancelled = await knife("job", "cancel", job_id, "--kill-timeout", "5")
        assert (cancelled.code, cancelled.last["status"], cancelled.last["cancelled"]) == (0, "cancelled", ["web-1"])


async def test_start_exits_with_1_when_the_job_was_cancelled_meanwhile(shim: Shim, tmp_path: Path) -> None:
    shim.script(run_for=None)
    knife = knife_of(shim, tmp_path)
    async with trio.open_nursery() as nursery:

        async def start() -> None:
            started = await knife("job", "start", "work", "web-1")
            assert (started.code, started.last) == (1, {"status": "cancelled", "nodes": {"cancelled": ["web-1"]}})

        nursery.start_soon(start)
        while not (jobs := (await shim.admin.get("/shovey/jobs")).json):
            await trio.sleep(0.05)
        await shim.until(jobs[0], "web-1", RunState.RUNNING)
        again = await knife("job", "cancel", jobs[0])
        assert (again.code, again.last["cancelled"]) == (0, ["web-1"])


async def test_quorum_in_percent_or_nodes_is_obeyed(shim: Shim, tmp_path: Path) -> None:
    knife = knife_of(shim, tmp_path)
    half = await knife("job", "start", "work", "web-1", NEVER_UP, "-q", "50%")
    assert (half.code, half.last["nodes"]) == (1, {"down": [NEVER_UP], "succeeded": ["web-1"]})
    both = await knife("job", "start", "work", "web-1", NEVER_UP, "-q", "2")
    assert both.code == 100
    assert "Not enough nodes were up" in both.err


@pytest.mark.parametrize("version", ["1.0", "1.1", "1.3"])
async def test_everything_that_is_read_is_signed_and_understood(shim: Shim, tmp_path: Path, version: str) -> None:
    knife = knife_of(shim, tmp_path, version=version)
    job_id = await shim.settled("web-1")
    assert (await knife("job", "list")).out == f"{job_id}\n"
    assert (await knife("job", "status", job_id)).last["status"] == "complete"
    assert (await knife("job", "info", job_id, "web-1")).last["status"] == "succeeded"
    assert (await knife("node", "status")).out == f"{NEVER_UP}\tnew\nweb-1\tup\nweb-2\tup\n"
    assert (await knife("node", "status", "web-2")).out == "web-2\tup\n"
    assert (await knife("job", "search", "name:web-* AND NOT name:web-2")).out == "web-1\n"
    elsewhere = replace(knife, url=f"{knife.url}/organizations/default")
    assert (await elsewhere("job", "list")).out == f"{job_id}\n"


async def test_wrong_key_and_unknown_job_are_errors_that_knife_shows(shim: Shim, tmp_path: Path) -> None:
    knife = knife_of(shim, tmp_path)
    missing = await knife("job", "status", "00000000-0000-0000-0000-000000000000")
    assert (missing.code, "404" in missing.err, "not found" in missing.err) == (100, True, True)
    stranger = await replace(knife, user="ops")("job", "list")
    assert (stranger.code, "401" in stranger.err) == (100, True)


async def test_start_that_is_answered_503_is_repeated_by_knife_and_runs_once(shim: Shim, tmp_path: Path) -> None:
    knife = knife_of(shim, tmp_path)
    attempts: list[str] = []

    async def full_twice(write: str, subject: str) -> None:
        if write == "create_job":
            attempts.append(subject)
            if len(attempts) < 3:
                raise StoreUnavailable("disk full")

    shim.store.before = full_twice
    started = await knife("job", "start", "work", "web-1")
    assert (started.code, started.last["nodes"]) == (0, {"succeeded": ["web-1"]}), started.err
    assert len(attempts) == 3
    assert (await shim.admin.get("/shovey/jobs")).json == [started.lines[0]["id"]]
    assert len(shim.agents["web-1"].orders) == 1
