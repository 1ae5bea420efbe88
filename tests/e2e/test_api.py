"""The operator's API on a real controller: idempotence, pages, output by offset."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from lab.limits import within
from shovey_trio.core.errors import Code
from shovey_trio.demo.commands import ALL_BYTES, commands
from shovey_trio.demo.fleet import Fleet, NodeSpec
from shovey_trio.demo.operator import STDERR, STDOUT, Operator, names_of, request
from shovey_trio.rpc import methods
from shovey_trio.rpc.bridge import RpcError, open_channel
from shovey_trio.v1 import job_pb2, job_service_pb2, node_service_pb2

pytestmark = pytest.mark.slow

BOTH = job_pb2.OUTPUT_STREAM_UNSPECIFIED


@pytest.fixture(scope="module")
def fleet(keep_fleet: Any) -> Iterator[Fleet]:
    def nodes(directory: Path) -> list[NodeSpec]:
        return [NodeSpec(name=name, whitelist=commands(str(directory))) for name in ("a", "b", "c")]

    with keep_fleet(nodes, serf=False) as fleet:
        yield fleet


@within(60)
async def test_twenty_racing_starts_of_one_request_are_one_job(fleet: Fleet, operator: Operator) -> None:
    asked = request("once", "a", request_id=str(uuid.uuid4()))
    ids: list[str] = []

    async def start() -> None:
        ids.append((await operator.client.start_job(asked)).job.id)

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(start)
    assert (len(ids), len(set(ids))) == (20, 1)
    await operator.finished(ids[0])
    assert (fleet.directory / "a.once").read_text() == "ran\n"
    assert (await operator.client.start_job(asked)).job.id == ids[0]


@within(30)
async def test_a_request_id_that_comes_with_another_body_is_refused_and_names_the_job(operator: Operator) -> None:
    request_id = str(uuid.uuid4())
    job_id = (await operator.client.start_job(request("true", "a", request_id=request_id))).job.id
    for other in (
        request("hello", "a", request_id=request_id),
        request("true", "a", "b", request_id=request_id),
        request("true", "a", request_id=request_id, quorum="1"),
        request("true", "a", request_id=request_id, timeout=5),
    ):
        with pytest.raises(RpcError) as caught:
            await operator.client.start_job(other)
        assert (caught.value.code, caught.value.reason) == (Code.ALREADY_EXISTS, "REQUEST_ID_REUSED")
        assert caught.value.metadata["job_id"] == job_id


@within(60)
async def test_pages_of_jobs_are_newest_first_and_without_gap_or_repeat(operator: Operator) -> None:
    started = [(await operator.run("true", "a")).job.id for _ in range(5)]
    listed = [job.id async for job in operator.client.list_jobs(page_size=2)]
    assert listed[:5] == started[::-1]
    assert len(listed) == len(set(listed))
    assert [job.id async for job in operator.client.list_jobs(page_size=100)] == listed
    by_command = [job.command async for job in operator.client.list_jobs(command="hello", page_size=1)]
    assert set(by_command) <= {"hello"}


@within(60)
async def test_pages_of_runs_and_nodes_are_by_name(operator: Operator) -> None:
    job_id = (await operator.run("true")).job.id
    assert names_of([run async for run in operator.client.list_runs(job_id, page_size=1)]) == ["a", "b", "c"]
    assert [node.name async for node in operator.client.list_nodes(page_size=2)] == ["a", "b", "c"]
    assert [node.name async for node in operator.client.list_nodes(match="[bc]", page_size=1)] == ["b", "c"]


@within(30)
@pytest.mark.parametrize("token", ["garbage", "!!!", "x" * 5000, "é"])
async def test_a_page_token_that_is_not_ours_is_refused(fleet: Fleet, token: str) -> None:
    server, tls, _ = fleet.client_tls()
    async with open_channel(server, tls) as channel:
        with pytest.raises(RpcError) as nodes:
            await channel.unary(methods.LIST_NODES, node_service_pb2.ListNodesRequest(page_token=token))
        with pytest.raises(RpcError) as jobs:
            await channel.unary(methods.LIST_JOBS, job_service_pb2.ListJobsRequest(page_token=token))
    assert (nodes.value.reason, jobs.value.reason) == ("INVALID_TOKEN", "INVALID_TOKEN")


@within(60)
async def test_output_is_read_from_any_offset_of_either_stream_or_of_both(operator: Operator) -> None:
    job_id = (await operator.run("bytes", "a")).job.id
    both = await operator.output(job_id, "a", BOTH)
    assert sorted(both) == sorted(ALL_BYTES * 2)
    for offset in (0, 1, 100, 255, 256):
        assert await operator.output(job_id, "a", STDOUT, offset=offset) == ALL_BYTES[offset:]
        assert await operator.output(job_id, "a", STDERR, offset=offset) == ALL_BYTES[::-1][offset:]
    for offset in (0, 200, 256, 300, 512):
        assert await operator.output(job_id, "a", BOTH, offset=offset) == both[offset:]
    for offset, reason in ((513, "OFFSET_OUT_OF_RANGE"), (-1, "OFFSET_OUT_OF_RANGE")):
        with pytest.raises(RpcError) as caught:
            await operator.output(job_id, "a", BOTH, offset=offset)
        assert caught.value.reason in {reason, "INVALID_REQUEST"}


@within(60)
async def test_a_follower_gets_output_while_the_command_runs_and_the_end_with_it(
    fleet: Fleet, operator: Operator
) -> None:
    job_id = await operator.start("held", "b")
    seen = b""
    async with operator.client.read_output(job_id, "b", stream=STDOUT, follow=True) as chunks:
        async for answer in chunks:
            if not seen:
                assert answer.chunk.data == b"began\n"
                assert not (await operator.client.get_run(job_id, "b")).HasField("finished_at")
                (fleet.directory / "go").touch()
            seen += answer.chunk.data
    assert seen == b"began\n" + b"".join(b"line %d\n" % n for n in range(1000))
    assert (await operator.client.get_run(job_id, "b")).exit_code == 7


@within(30)
async def test_what_does_not_exist_is_not_found_in_every_call(operator: Operator) -> None:
    absent = str(uuid.uuid4())
    client = operator.client

    async def watch() -> None:
        async with client.watch_job(absent) as events:
            await events.receive()

    async def read() -> None:
        async with client.read_output(absent, "a") as chunks:
            await chunks.receive()

    async def runs() -> None:
        _ = [run async for run in client.list_runs(absent)]

    async def statuses() -> None:
        _ = [status async for status in client.list_node_statuses("nobody")]

    for call in (
        lambda: client.get_job(absent),
        lambda: client.get_run(absent, "a"),
        lambda: client.cancel_job(absent),
        lambda: client.get_node("nobody"),
        lambda: client.remove_node("nobody"),
        lambda: client.remove_user("nobody"),
        watch,
        read,
        runs,
        statuses,
    ):
        with pytest.raises(RpcError) as caught:
            await call()
        assert caught.value.code is Code.NOT_FOUND


@within(30)
async def test_a_resume_token_of_another_job_is_refused(operator: Operator) -> None:
    one, other = (await operator.run("true", "a")).job.id, (await operator.run("true", "a")).job.id
    async with operator.client.watch_job(one) as events:
        token = (await events.receive()).resume_token
    for wrong in (token, "garbage"):
        with pytest.raises(RpcError) as caught:
            await _watch_once(operator, other, wrong)
        assert caught.value.reason == "INVALID_TOKEN"


async def _watch_once(operator: Operator, job_id: str, token: str) -> None:
    async with operator.client.watch_job(job_id, resume_token=token) as events:
        await events.receive()
