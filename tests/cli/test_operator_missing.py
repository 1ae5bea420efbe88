"""Output that is missing is told wherever output is shown, and by an exit code where one asks for it."""

from __future__ import annotations

import json

import pytest

from lab.fake_controller import FakeRun

from .conftest import OperatorRig
from .test_operator_attached import open_terminal

HOLE = "[1,200 bytes of output are missing here: more was written than is kept of a run]"
AT_THE_END = "[34 bytes of output are missing here: more was written than is kept of a run]"


@pytest.fixture
def flooded(rig: OperatorRig) -> OperatorRig:
    async def flood(run: FakeRun) -> int:
        run.write(b"head\nunfinished")
        run.write(b"tail\n", dropped_before=1200)
        # A disk was full: behind this nothing could be kept.
        run.message.dropped_bytes += 34
        return 0

    rig.controller.scripts["flood"] = flood
    return rig


async def test_an_attached_pipe_has_the_bytes_on_stdout_and_what_is_missing_on_stderr(flooded: OperatorRig) -> None:
    done = await flooded.run("job", "start", "flood", "web-1")
    assert (done.code, done.out) == (0, "web-1 | head\nweb-1 | unfinished\nweb-1 | tail\n")
    told = done.err.splitlines()
    assert [line for line in told if line.startswith("web-1 | ")] == [f"web-1 | {HOLE}", f"web-1 | {AT_THE_END}"]
    assert any(line.startswith("web-1: succeeded (1.2 KiB of output missing)") for line in told)


async def test_a_terminal_shows_what_is_missing_in_its_place(flooded: OperatorRig) -> None:
    expected = ["head", "unfinished", HOLE, "tail", AT_THE_END]
    async with open_terminal(flooded, "job", "start", "flood", "web-1") as terminal:
        assert await terminal.rest() == 0
    assert [line.strip() for line in terminal.text.splitlines() if line.startswith("web-1 | ")] == [
        f"web-1 | {line}" for line in expected
    ]
    async with open_terminal(flooded, "job", "output", "last", "web-1") as terminal:
        assert await terminal.rest() == 0
    assert terminal.text.splitlines()[:5] == expected


@pytest.mark.parametrize("node", [[], ["web-1"], ["web-1", "--raw"], ["web-1", "--timestamps"]])
async def test_a_later_job_output_tells_it_and_fails_only_when_asked_to(flooded: OperatorRig, node: list[str]) -> None:
    await flooded.run("job", "start", "flood", "web-1", "--no-output")
    done = await flooded.run("job", "output", "last", *node)
    assert done.code == 0
    assert "bytes of output are missing" in done.err
    assert "missing" not in done.out
    assert (await flooded.run("job", "output", "last", *node, "--fail-on-truncation")).code == 11


async def test_a_start_fails_on_truncation_with_a_code_of_its_own(flooded: OperatorRig) -> None:
    assert (await flooded.run("job", "start", "flood", "web-1", "--fail-on-truncation")).code == 11
    assert (await flooded.run("job", "start", "hello", "web-1", "--fail-on-truncation")).code == 0
    # A run that failed is the more important news.
    assert (await flooded.run("job", "start", "mixed", "web-1", "web-2", "--fail-on-truncation")).code == 1


async def test_status_and_json_have_the_number(flooded: OperatorRig) -> None:
    await flooded.run("job", "start", "flood", "web-1", "--no-output")
    assert "1.2 KiB of output missing" in (await flooded.run("job", "status", "last")).out
    status = json.loads((await flooded.run("job", "status", "last", "-o", "json")).out)
    assert status["runs"][0]["dropped_bytes"] == 1234
    events = (await flooded.run("job", "watch", "last", "-o", "jsonl")).out.splitlines()
    chunks = [event["output"]["chunk"] for event in map(json.loads, events) if "output" in event]
    assert [chunk["dropped_before"] for chunk in chunks] == [0, 1200]


async def test_output_whose_end_never_came_is_told_and_counts_as_truncated(rig: OperatorRig) -> None:
    async def cut(run: FakeRun) -> int:
        run.write(b"some\n")
        run.message.output_incomplete = True
        return 0

    rig.controller.scripts["cut"] = cut
    told = "[the node never sent the end of this output: some of it may be missing]"
    started = await rig.run("job", "start", "cut", "web-1", "--fail-on-truncation")
    assert (started.code, started.out) == (11, "web-1 | some\n")
    assert f"web-1 | {told}" in started.err.splitlines()
    assert "succeeded (output incomplete)" in started.err
    for node in ([], ["web-1"], ["web-1", "--raw"]):
        done = await rig.run("job", "output", "last", *node, "--fail-on-truncation")
        assert (done.code, told in done.err, told in done.out) == (11, True, False)
    status = json.loads((await rig.run("job", "status", "last", "-o", "json")).out)
    assert status["runs"][0]["output_incomplete"] is True
