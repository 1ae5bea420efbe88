"""Responses that are posted: sent in order by nobody's task."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from lab.rpc_probe import ECHO, KIB, Call, text
from shovey_trio.rpc.bridge import Channel, Listener, open_channel, open_server, serve_bidi

# More than a connection's window and grpc's own buffers take from a client that does not read.
_MANY = 400
_LARGE = KIB * 16


@asynccontextmanager
async def serving(handler: Callable[[Call], Awaitable[None]]) -> AsyncIterator[Channel]:
    """A server with one method, whose handler is ``handler``, and a channel to it."""
    listener = Listener(name="plain", address="127.0.0.1:0", serves=(serve_bidi(ECHO, handler),))
    async with (
        open_server([listener]) as server,
        open_channel(f"127.0.0.1:{server.port('plain')}", None) as channel,
    ):
        yield channel


async def test_posted_messages_arrive_in_their_order():
    async def handler(call: Call) -> None:
        for number in range(_MANY):
            call.post(text(f"{number} {KIB}"))
        await trio.sleep_forever()

    with trio.fail_after(60):
        async with serving(handler) as channel, channel.stream(ECHO) as stream:
            for number in range(_MANY):
                assert (await stream.receive()).value.startswith(f"{number} ")


async def test_each_message_posted_later_arrives_without_another():
    async def handler(call: Call) -> None:
        async for message in call:
            call.post(message)

    with trio.fail_after(60):
        async with serving(handler) as channel, channel.stream(ECHO) as stream:
            for number in range(50):
                await stream.send(text(str(number)))
                assert (await stream.receive()).value == str(number)


async def test_what_waits_for_a_client_that_does_not_read_is_counted_and_keeps_send_out():
    refused = trio.Event()

    async def handler(call: Call) -> None:
        for _ in range(_MANY):
            call.post(text(_LARGE))
        assert 0 < call.posted < _MANY
        with pytest.raises(trio.BusyResourceError):
            await call.send(text("out of turn"))
        refused.set()
        await trio.sleep_forever()

    with trio.fail_after(60):
        async with serving(handler) as channel, channel.stream(ECHO) as stream:
            await refused.wait()
            for _ in range(_MANY):
                assert (await stream.receive()).value == _LARGE


async def test_send_is_free_again_when_everything_posted_has_gone():
    async def handler(call: Call) -> None:
        call.post(text("posted"))
        await call.receive()  # the client has it
        await call.send(text("sent"))

    with trio.fail_after(60):
        async with serving(handler) as channel, channel.stream(ECHO) as stream:
            assert (await stream.receive()).value == "posted"
            await stream.send(text("go on"))
            assert [message.value async for message in stream] == ["sent"]


async def test_posting_is_refused_while_a_task_sends():
    refused = trio.Event()

    async def send_for_ever(call: Call) -> None:
        while True:
            await call.send(text(_LARGE))

    async def handler(call: Call) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_for_ever, call)
            await call.receive()
            with pytest.raises(trio.BusyResourceError):
                call.post(text("out of turn"))
            refused.set()

    with trio.fail_after(60):
        async with serving(handler) as channel, channel.stream(ECHO) as stream:
            await stream.receive()
            await stream.send(text("try it"))
            await refused.wait()


async def test_posting_to_a_client_that_left_raises_nothing_and_the_handler_is_cancelled():
    posting, cancelled = trio.Event(), trio.Event()

    async def handler(call: Call) -> None:
        posting.set()
        try:
            while True:
                call.post(text(KIB))
                await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            call.post(text("too late"))
            cancelled.set()
            raise

    with trio.fail_after(60):
        async with serving(handler) as channel:
            async with channel.stream(ECHO):
                await posting.wait()
            await cancelled.wait()


async def test_what_was_not_sent_when_the_handler_ends_is_dropped_and_the_rpc_ends_well():
    calls: list[Call] = []

    async def handler(call: Call) -> None:
        calls.append(call)
        for _ in range(_MANY):
            call.post(text(_LARGE))

    with trio.fail_after(60):
        async with serving(handler) as channel, channel.stream(ECHO) as stream:
            got = [message.value async for message in stream]
            assert len(got) < _MANY
            assert set(got) <= {_LARGE}
            calls[0].post(text("nobody is there"))
            assert calls[0].posted == 0
