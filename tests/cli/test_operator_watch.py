"""``shovey job watch`` and ``job output``: nothing missed, nothing doubled, bytes as they are."""

from __future__ import annotations

import json
import re
import subprocess

import pytest
import trio

from lab.fake_controller import FakeRun

from .conftest import ALL_BYTES, OperatorRig


@pytest.fixture
async def finished(rig: OperatorRig) -> str:
    """The id of a job that has written both streams on two nodes and failed on one."""
    done = await rig.run("job", "start", "mixed", "web-1", "web-2", "-o", "name")
    assert done.code == 1
    return done.out.strip()


async def test_watching_a_finished_job_shows_all_of_its_output_and_how_it_ended(
    rig: OperatorRig, finished: str
) -> None:
    done = await rig.run("job", "watch", finished)
    assert done.code == 1
    assert sorted(done.out.splitlines()) == [
        "web-1 | to stderr",
        "web-1 | to stdout",
        "web-2 | to stderr",
        "web-2 | to stdout",
    ]


async def test_a_watch_goes_on_where_it_was_cut(rig: OperatorRig) -> None:
    async def count_up(run: FakeRun) -> int:
        await rig.controller.watched.wait()
        for number in range(20):
            run.write(b"line %d\n" % number)
            await trio.lowlevel.checkpoint()
        return 0

    rig.controller.scripts["count"] = count_up
    rig.controller.cut_streams_after, rig.controller.cuts = 3, 3
    done = await rig.run("job", "start", "count", "web-1")
    assert done.code == 0
    assert done.out.splitlines() == [f"web-1 | line {number}" for number in range(20)]
    assert rig.controller.cuts == 0
    assert "connection to the controller lost; resuming" in done.err


async def test_events_are_lines_of_json_with_resume_tokens(rig: OperatorRig) -> None:
    async def watched_hello(run: FakeRun) -> int:
        await rig.controller.watched.wait()
        run.write(b"hello\n")
        return 0

    rig.controller.scripts["hello"] = watched_hello
    done = await rig.run("job", "start", "hello", "web-1", "-o", "jsonl")
    events = [json.loads(line) for line in done.out.splitlines()]
    assert done.code == 0
    assert events[0]["snapshot"]["job"]["command"] == "hello"
    assert events[-1]["job_changed"]["job"]["state"] == "complete"
    assert len({event["resume_token"] for event in events}) == len(events)
    (chunk,) = [event["output"]["chunk"] for event in events if "output" in event]
    assert (chunk["stream"], chunk["text"], chunk["position"]) == ("stdout", "hello\n", 0)
    assert chunk["data"] == "aGVsbG8K"


async def test_the_result_of_a_watch_is_that_of_status(rig: OperatorRig, finished: str) -> None:
    result = json.loads((await rig.run("job", "watch", finished, "-o", "json")).out)
    assert result == json.loads((await rig.run("job", "status", finished, "-o", "json")).out)
    assert [run["stdout_bytes"] for run in result["runs"]] == [10, 10]


async def test_last_is_the_newest_job_of_the_caller(rig: OperatorRig, finished: str) -> None:
    assert (await rig.run("job", "status", "last", "-o", "json")).code == 0
    await rig.run("job", "start", "hello", "web-1")
    status = json.loads((await rig.run("job", "status", "last", "-o", "json")).out)
    assert status["job"]["id"] == list(rig.controller.jobs)[-1] != finished


async def test_last_without_a_job_is_not_found(rig: OperatorRig) -> None:
    done = await rig.run("job", "watch", "last")
    assert done.code == 3
    assert "has started no job yet" in done.err


async def test_an_unknown_job_is_not_found(rig: OperatorRig) -> None:
    for command in ("status", "watch", "output", "cancel"):
        done = await rig.run("job", command, "01a20202-d8f3-7000-8000-00000000dead")
        assert done.code == 3, command
        assert done.err.endswith("(NOT_FOUND)\n")


async def test_output_of_one_node_keeps_its_streams_apart(rig: OperatorRig, finished: str) -> None:
    done = await rig.run("job", "output", finished, "web-2")
    assert (done.code, done.out, done.err) == (0, "to stdout\n", "to stderr\n")


async def test_output_of_one_stream_is_that_stream_alone(rig: OperatorRig, finished: str) -> None:
    done = await rig.run("job", "output", finished, "--stream", "stderr", "--no-follow")
    assert done.out.splitlines() == ["web-1 | to stderr", "web-2 | to stderr"]


@pytest.mark.parametrize("follow", ["--follow", "--no-follow"])
async def test_raw_output_is_the_exact_bytes_across_a_cut(rig: OperatorRig, follow: str) -> None:
    await rig.run("job", "start", "binary", "web-1", "--no-output")
    rig.controller.cut_streams_after, rig.controller.cuts = 1, 1
    done = await rig.run("job", "output", "last", "web-1", "--raw", follow)
    assert done.code == 0
    assert done.stdout == ALL_BYTES
    assert rig.controller.cuts == 0


async def test_lines_in_a_pipe_are_the_exact_bytes_behind_their_label(rig: OperatorRig) -> None:
    await rig.run("job", "start", "binary", "web-1", "--no-output")
    done = await rig.run("job", "output", "last", "--no-follow")
    before, after = ALL_BYTES.split(b"\n")
    assert done.stdout == b"web-1 | " + before + b"\nweb-1 | " + after + b"\n"


async def test_timestamps_are_in_front_of_each_line(rig: OperatorRig, finished: str) -> None:
    done = await rig.run("job", "output", finished, "web-1", "--timestamps", "--stream", "stdout")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00 to stdout\n", done.out)


async def test_output_follows_until_the_run_ends(rig: OperatorRig) -> None:
    await rig.run("job", "start", "-b", "gated", "web-1", "db-1")
    with trio.fail_after(30):
        process = await trio.lowlevel.open_process(
            rig.command("job", "output", "last"),
            env=dict(rig.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        written = b""
        while written.count(b"before") < 2:
            written += await process.stdout.receive_some()
        assert b"after" not in written
        rig.gate.set()
        async for data in process.stdout:
            written += data
        assert await process.wait() == 0
    assert sorted(written.decode().splitlines()) == [
        "db-1  | after",
        "db-1  | before",
        "web-1 | after",
        "web-1 | before",
    ]


async def test_a_reader_that_goes_away_ends_the_command_quietly(rig: OperatorRig) -> None:
    async def flood(run: FakeRun) -> int:
        for _ in range(200):
            run.write(b"x" * 1023 + b"\n")
        await trio.lowlevel.checkpoint()
        return 0

    rig.controller.scripts["flood"] = flood
    await rig.run("job", "start", "-b", "flood", "web-1", "db-1")
    with trio.fail_after(30):
        process = await trio.lowlevel.open_process(
            rig.command("job", "output", "last"),
            env=dict(rig.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        await process.stdout.receive_some(100)
        await process.stdout.aclose()
        complaints = b"".join([data async for data in process.stderr])
        assert await process.wait() == 141
    assert complaints == b""


async def test_output_of_an_unknown_node_is_not_found(rig: OperatorRig, finished: str) -> None:
    done = await rig.run("job", "output", finished, "web-9")
    assert done.code == 3
