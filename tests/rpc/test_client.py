"""The typed client over a real connection: retries, resumption, paging, and what it makes of errors."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from lab.fake_controller import FakeController, FakeRun
from shovey_trio.core.errors import Code, Unreachable
from shovey_trio.rpc.bridge import Listener, RpcError, open_server
from shovey_trio.rpc.client.client import ShoveyClient, open_client
from shovey_trio.rpc.client.retry import RetryPolicy
from shovey_trio.rpc.errors import status_of
from shovey_trio.v1.job_service_pb2 import StartJobRequest, Target

# Quick, and over in seconds when a test goes wrong.
IMPATIENT = RetryPolicy(
    first_pause=0.01, longest_pause=0.05, attempt_deadline=1.0, call_patience=0.5, stream_patience=0.5
)


async def hello(run: FakeRun) -> int:
    for number in range(50):
        run.write(b"%d\n" % number)
    await trio.lowlevel.checkpoint()
    return 0


async def hang(run: FakeRun) -> int:
    await trio.sleep_forever()


@pytest.fixture
async def controller() -> AsyncIterator[FakeController]:
    fake = FakeController({"web-1": True}, {"hello": hello, "hang": hang})
    async with trio.open_nursery() as nursery:
        await nursery.start(fake.serve)
        yield fake
        nursery.cancel_scope.cancel(reason="the test is over")


@pytest.fixture
async def client(controller: FakeController) -> AsyncIterator[ShoveyClient]:
    listener = Listener(name="plain", address="127.0.0.1:0", serves=controller.serves())
    async with (
        open_server([listener], map_error=status_of) as server,
        open_client(f"127.0.0.1:{server.port('plain')}", None, retry=IMPATIENT) as opened,
    ):
        with trio.fail_after(30):
            yield opened


def start_request(command: str = "hello", *, request_id: str = "r1") -> StartJobRequest:
    return StartJobRequest(request_id=request_id, command=command, target=Target(all=True))


async def finished_job(client: ShoveyClient) -> str:
    job = (await client.start_job(start_request())).job
    async with client.watch_job(job.id) as events:
        async for _ in events:
            pass
    return job.id


async def test_a_start_with_a_request_id_is_repeated(client: ShoveyClient, controller: FakeController) -> None:
    controller.lost_answers = 3
    job = (await client.start_job(start_request())).job
    assert list(controller.jobs) == [job.id]


async def test_a_start_without_a_request_id_is_never_repeated(client: ShoveyClient, controller: FakeController) -> None:
    controller.lost_answers = 1
    with pytest.raises(Unreachable):
        await client.start_job(start_request(request_id=""))
    assert len(controller.jobs) == 1


async def test_an_attempt_that_is_not_answered_is_repeated(client: ShoveyClient, controller: FakeController) -> None:
    controller.stalled_answers = 1
    assert (await client.get_server_info()).version == "9.9.9"
    assert controller.stalled_answers == 0


async def test_what_the_server_says_is_not_repeated(client: ShoveyClient) -> None:
    with pytest.raises(RpcError) as caught:
        await client.get_job("01a20202-d8f3-7000-8000-000000000001")
    assert (caught.value.code, caught.value.reason) == (Code.NOT_FOUND, "NOT_FOUND")


async def test_a_server_that_is_not_there_is_unreachable_after_the_patience() -> None:
    with trio.fail_after(30):
        async with open_client("127.0.0.1:1", None, retry=IMPATIENT) as client:
            with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1: Connection refused"):
                await client.get_server_info()


async def test_a_stream_to_a_server_that_is_not_there_is_unreachable_after_the_patience() -> None:
    losses: list[RpcError] = []
    with trio.fail_after(30):
        async with (
            open_client("127.0.0.1:1", None, retry=IMPATIENT) as client,
            client.watch_job("any", on_lost=losses.append) as events,
        ):
            with pytest.raises(Unreachable):
                await events.receive()
    assert len(losses) == 1


async def test_output_is_whole_however_often_it_is_cut(client: ShoveyClient, controller: FakeController) -> None:
    job = await finished_job(client)
    controller.cut_streams_after, controller.cuts = 7, 6
    async with client.read_output(job, "web-1") as responses:
        read = b"".join([response.chunk.data async for response in responses])
    assert read == b"".join(b"%d\n" % number for number in range(50))
    assert controller.cuts == 0


async def test_output_is_read_from_an_offset(client: ShoveyClient) -> None:
    job = await finished_job(client)
    async with client.read_output(job, "web-1", offset=3) as responses:
        first = await responses.receive()
    assert first.chunk.data == b"\n"


async def test_a_receive_that_was_cancelled_while_contact_is_lost_goes_on_later(
    client: ShoveyClient, controller: FakeController
) -> None:
    job = await finished_job(client)
    controller.cut_streams_after, controller.cuts = 1, 20
    read = b""
    async with client.read_output(job, "web-1") as responses:
        while True:
            with trio.move_on_after(0.004):
                try:
                    read += (await responses.receive()).chunk.data
                except trio.EndOfChannel:
                    break
    assert read == b"".join(b"%d\n" % number for number in range(50))


async def test_a_watch_that_is_left_is_over_on_the_server(client: ShoveyClient, controller: FakeController) -> None:
    job = (await client.start_job(start_request("hang"))).job
    async with client.watch_job(job.id) as events:
        await events.receive()
        assert controller.open_streams == 1
    while controller.open_streams:
        await trio.testing.wait_all_tasks_blocked(0.01)


async def test_a_listing_goes_over_all_pages_and_can_be_left(client: ShoveyClient, controller: FakeController) -> None:
    for _ in range(25):
        controller.add_finished_job("hello", ["web-1"])
    newest_first = list(reversed(controller.jobs))
    assert [job.id for job in await client.list_jobs(page_size=10).take()] == newest_first
    assert [job.id for job in await client.list_jobs(page_size=10).take(12)] == newest_first[:12]
    assert await client.list_jobs().take(0) == []
    async for job in client.list_jobs(page_size=10):
        assert job.id == newest_first[0]
        break


def test_pauses_grow_to_their_limit_and_are_spread() -> None:
    policy = RetryPolicy(first_pause=1.0, longest_pause=4.0)
    for nominal, pause in zip([1.0, 2.0, 4.0, 4.0, 4.0], policy.pauses(), strict=False):
        assert nominal / 2 <= pause <= nominal
    assert math.isfinite(policy.stream_patience)
