"""Output through the shim: knife's stream client prints each byte once and ends, whatever the end."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
import trio

from lab.chef_client import Answer
from lab.fake_agents import OnCancel
from shovey_trio.core.jobs.events import ReportOutcome, RunReport
from shovey_trio.core.jobs.model import ProofKind, StreamName
from shovey_trio.core.jobs.states import RunState
from shovey_trio.core.trust.orders import RefusalReason
from shovey_trio.nursery.settings import Bounds

from .conftest import NEVER_UP, Shim, open_shim

OUT, ERR = StreamName.STDOUT, StreamName.STDERR
ALL_BYTES = bytes(range(256)) * 5


async def stream(shim: Shim, job_id: str, query: str = "sequence=0&output_type=stdout", node: str = "web-1") -> Answer:
    return await shim.admin.get(f"/shovey/stream/{job_id}/{node}?{query}")


async def knife_prints(shim: Shim, job_id: str, node: str = "web-1") -> dict[str, str]:
    """What ``knife goiardi job stream`` prints: it asks for 0 until it is told that this was the last."""
    printed = {}
    for kind in ("stdout", "stderr"):
        printed[kind] = ""
        while True:
            answer = (await stream(shim, job_id, f"sequence=0&output_type={kind}", node)).json
            printed[kind] += answer["output"]
            if answer["is_last"]:
                break
            await trio.sleep(0.02)
    return printed


async def test_stream_looks_as_recorded(shim: Shim) -> None:
    shim.script(output=((OUT, b"hello\n"),))
    job_id = await shim.settled("web-1")
    assert (await stream(shim, job_id, "")).json == {
        "is_last": True,
        "last_seq": 0,
        "node_name": "web-1",
        "output": "hello\n",
        "output_type": "stdout",
        "run_id": job_id,
    }
    empty = (await stream(shim, job_id, "output_type=stderr")).json
    assert (empty["is_last"], empty["last_seq"], empty["output"]) == (True, 0, "")


async def test_knife_prints_each_byte_once_while_output_grows(shim: Shim) -> None:
    shim.script(run_for=None)
    job_id = await shim.start("web-1")
    run = await shim.until(job_id, "web-1", RunState.RUNNING)
    agent = shim.agents["web-1"]
    printed: dict[str, str] = {}
    async with trio.open_nursery() as nursery:

        async def knife() -> None:
            printed.update(await knife_prints(shim, job_id))

        nursery.start_soon(knife)
        for number in range(40):
            agent.write(run.id, OUT, f"line {number}\n".encode() * 20)
            await trio.sleep(0.01)
        report = RunReport(
            run_id=run.id,
            outcome=ReportOutcome.EXITED,
            exit_code=0,
            started_at=0.0,
            finished_at=1.0,
            output_bytes=agent.spool[run.id].output_bytes,
        )
        agent.finish(run.id, report)
    whole = "".join(f"line {number}\n" * 20 for number in range(40))
    assert printed == {"stdout": whole, "stderr": ""}


@pytest.mark.parametrize(
    ("script", "state"),
    [
        ({}, RunState.SUCCEEDED),
        ({"exit_code": 1}, RunState.FAILED),
        (
            {"outcome": ReportOutcome.TIMED_OUT, "exit_code": None, "proof": ProofKind.EMPTY_SUBREAPER},
            RunState.TIMED_OUT,
        ),
        ({"refuse": RefusalReason.NOT_WHITELISTED}, RunState.NACKED),
        ({"refuse": RefusalReason.BAD_SIGNATURE}, RunState.INVALID),
        ({"outcome": ReportOutcome.CRASHED, "exit_code": None}, RunState.CRASHED),
    ],
)
async def test_knife_ends_for_every_end_of_a_run(shim: Shim, script: dict[str, Any], state: RunState) -> None:
    shim.script(**script)
    job_id = await shim.settled("web-1")
    assert (await shim.rig.run(job_id, "web-1")).state is state
    assert await knife_prints(shim, job_id) == {"stdout": "", "stderr": ""}


async def test_knife_ends_for_a_cancelled_run_and_for_a_node_that_was_down(shim: Shim) -> None:
    shim.script(run_for=None)
    job_id = await shim.start("web-1", NEVER_UP, quorum=1)
    await shim.until(job_id, "web-1", RunState.RUNNING)
    await shim.admin.put("/shovey/jobs/cancel", {"run_id": job_id})
    assert await knife_prints(shim, job_id) == {"stdout": "", "stderr": ""}
    assert await knife_prints(shim, job_id, NEVER_UP) == {"stdout": "", "stderr": ""}


async def test_reader_of_a_live_stream_is_held_until_its_end(shim: Shim) -> None:
    async with open_shim(stream_hold=20.0) as patient:
        patient.script(run_for=None, output=((OUT, b"before "),))
        job_id = await patient.start("web-1")
        await patient.until(job_id, "web-1", RunState.RUNNING)
        async with trio.open_nursery() as nursery:

            async def cancel() -> None:
                await patient.admin.put("/shovey/jobs/cancel", {"run_id": job_id})

            nursery.start_soon(cancel)
            answer = (await stream(patient, job_id)).json
        assert (answer["is_last"], answer["output"]) == (True, "before ")


async def test_one_caller_cannot_take_every_place_of_held_readers() -> None:
    """Beyond its share a caller is answered at once, and asks again; another caller is held beside it."""
    async with open_shim(stream_hold=20.0, bounds=Bounds(watchers=3, watchers_per_caller=1)) as shim:
        shim.script(run_for=None)
        job_id = await shim.start("web-1")
        await shim.until(job_id, "web-1", RunState.RUNNING)
        path = f"/shovey/stream/{job_id}/web-1?sequence=0&output_type=stdout"
        answers: list[tuple[str, bool]] = []
        unheld = trio.Event()

        async def read(user: str) -> None:
            answers.append((user, (await shim.client(user).get(path)).json["is_last"]))
            unheld.set()

        async with trio.open_nursery() as nursery:
            for user in ("ops", "ops", "admin"):
                nursery.start_soon(read, user)
            await unheld.wait()
            assert answers == [("ops", False)]
            await shim.client("ops").put("/shovey/jobs/cancel", {"run_id": job_id})
        assert sorted(answers) == [("admin", True), ("ops", False), ("ops", True)]


async def test_held_reader_is_let_go_when_the_server_stops() -> None:
    async with open_shim(stream_hold=20.0) as shim:
        shim.script(run_for=None, on_cancel=OnCancel.IGNORE)
        job_id = await shim.start("web-1")
        run = await shim.until(job_id, "web-1", RunState.RUNNING)
        answers: list[Answer] = []
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                answers.append(await stream(shim, job_id))

            nursery.start_soon(read)
            # Commits are noted for a job that somebody waits for, and for no other.
            while shim.rig.services.hub.mark(job_id) < 0:  # noqa: ASYNC110 - the hub tells waiters alone
                shim.agents["web-1"].write(run.id, OUT, b".")
                await trio.sleep(0.02)
            with trio.fail_after(10):
                await shim.server.stop(grace=10)
        assert [(answer.json["is_last"], answer.json["output"]) for answer in answers] == [(False, "")]


async def test_client_that_moves_on_gets_every_byte_once(shim: Shim) -> None:
    output = "".join(f"ünïcödé {number}\n" for number in range(1_000)).encode()
    shim.script(output=((OUT, output),))
    job_id = await shim.settled("web-1")
    whole = (await stream(shim, job_id)).json
    assert (whole["output"].encode(), whole["last_seq"]) == (output, (len(output) - 1) // 1024)
    third = (await stream(shim, job_id, "sequence=3&output_type=stdout")).json
    assert output.decode().endswith(third["output"])
    assert "\ufffd" not in third["output"]
    assert abs(len(third["output"].encode()) - (len(output) - 3 * 1024)) <= 3


async def test_both_streams_come_in_the_order_in_which_they_were_written(shim: Shim) -> None:
    shim.script(output=((OUT, b"1\n"), (ERR, b"2\n"), (OUT, b"3\n")))
    job_id = await shim.settled("web-1")
    answer = (await stream(shim, job_id, "output_type=both")).json
    assert (answer["output"], answer["output_type"], answer["is_last"]) == ("1\n2\n3\n", "both", True)


@pytest.mark.parametrize("kind", ["output_type=stdout", "output_type=both"])
async def test_output_that_is_not_text_is_exact_in_base64_beside_its_text(shim: Shim, kind: str) -> None:
    shim.script(output=((OUT, ALL_BYTES),))
    job_id = await shim.settled("web-1")
    answer = (await stream(shim, job_id, kind)).json
    assert answer["output"] == ALL_BYTES.decode(errors="replace")
    assert base64.b64decode(answer["output_base64"]) == ALL_BYTES
    run = (await shim.admin.get(f"/shovey/jobs/{job_id}/web-1")).json
    assert base64.b64decode(run["output_base64"]) == ALL_BYTES
    assert "stderr_base64" not in run


async def test_raw_download_is_byte_for_byte(shim: Shim) -> None:
    shim.script(output=((OUT, ALL_BYTES), (ERR, b"\xff\x00")))
    job_id = await shim.settled("web-1")
    for kind, exact in {"stdout": ALL_BYTES, "stderr": b"\xff\x00", "both": ALL_BYTES + b"\xff\x00"}.items():
        answer = await shim.admin.get(f"/shovey/output/{job_id}/web-1?output_type={kind}")
        assert answer.body == exact
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["x-shovey-complete"] == "true"


async def test_large_output_is_whole_and_valid_json(shim: Shim) -> None:
    piece = ('"\\\n\x00é' * 8_000).encode()
    shim.script(output=tuple((OUT, piece) for _ in range(20)))
    job_id = await shim.settled("web-1")
    answer = await shim.admin.get(f"/shovey/jobs/{job_id}/web-1")
    assert "content-length" not in answer.headers
    assert json.loads(answer.body)["output"].encode() == piece * 20


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("output_type=foo", "output type must be 'stdout', 'stderr', or 'both'"),
        ("output_type=", "output type must be 'stdout', 'stderr', or 'both'"),
        ("sequence=abc", "sequence 'abc' is not a number"),
        ("sequence=", "sequence '' is not a number"),
    ],
)
async def test_query_that_makes_no_sense_is_400(shim: Shim, query: str, text: str) -> None:
    job_id = await shim.settled("web-1")
    answer = await stream(shim, job_id, query)
    assert (answer.status, answer.error) == (400, text)


async def test_stream_of_what_is_not_there_is_404(shim: Shim) -> None:
    job_id = await shim.settled("web-1")
    assert (await stream(shim, "zork")).error == "shovey job zork not found"
    answer = await stream(shim, job_id, node="nope")
    assert (answer.status, answer.error) == (404, f"run {job_id} for node nope not found")


async def test_head_of_a_live_stream_is_not_held(shim: Shim) -> None:
    async with open_shim(stream_hold=20.0) as patient:
        patient.script(run_for=None)
        job_id = await patient.start("web-1")
        with trio.fail_after(10):
            answer = await patient.admin.request("HEAD", f"/shovey/stream/{job_id}/web-1")
        assert (answer.status, answer.body) == (200, b"")
