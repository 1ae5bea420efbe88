"""The four shapes, message order, half-close and the values a handler sees."""

from __future__ import annotations

import math

import pytest
import trio
from google.protobuf.wrappers_pb2 import StringValue

from lab.rpc_probe import ECHO, UNARY, UPLOAD, WATCH, text
from shovey_trio.core.errors import Code
from shovey_trio.rpc.bridge import (
    Listener,
    Method,
    RpcError,
    RpcStatus,
    open_channel,
    open_server,
    serve_bidi,
    serve_unary,
)


async def test_unary_returns_the_response(open_rig):
    with trio.fail_after(20):
        async with open_rig() as rig:
            assert (await rig.channel.unary(UNARY, text("hello"))).value == "hello"


async def test_server_stream_ends_after_its_last_message(open_rig):
    with trio.fail_after(20):
        async with open_rig() as rig, rig.channel.stream(WATCH, text("50")) as stream:
            assert len([message async for message in stream]) == 50
            with pytest.raises(trio.EndOfChannel):
                await stream.receive()


async def test_client_stream_gets_one_response_after_half_close(open_rig):
    with trio.fail_after(20):
        async with open_rig() as rig, rig.channel.stream(UPLOAD) as stream:
            for number in range(40):
                await stream.send(text(str(number) + "!"))
            await stream.half_close()
            assert (await stream.receive()).value == "40"
            with pytest.raises(trio.EndOfChannel):
                await stream.receive()


async def test_bidi_stream_keeps_order_both_ways(open_rig):
    with trio.fail_after(20):
        async with open_rig() as rig, rig.channel.stream(ECHO) as stream:
            sent = [f"message {number}" for number in range(200)]

            async def send_all() -> None:
                for value in sent:
                    await stream.send(text(value))
                await stream.half_close()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_all)
                assert [message.value async for message in stream] == sent


async def test_sending_after_half_close_is_refused_here(open_rig):
    with trio.fail_after(20):
        async with open_rig() as rig, rig.channel.stream(ECHO) as stream:
            await stream.half_close()
            await stream.half_close()
            with pytest.raises(trio.ClosedResourceError):
                await stream.send(text("late"))


async def test_a_second_receiver_on_a_stream_is_refused(open_rig):
    with trio.fail_after(20):
        async with open_rig() as rig, rig.channel.stream(ECHO) as stream, trio.open_nursery() as nursery:
            nursery.start_soon(stream.receive)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await stream.receive()
            nursery.cancel_scope.cancel(reason="seen")


async def test_deadline_of_the_callers_scope_reaches_the_handler(open_rig):
    with trio.fail_after(90):
        async with open_rig() as rig:
            with trio.fail_after(60):
                sixty = float((await rig.channel.unary(UNARY, text("remaining"))).value)
            # Less what the way there took, which is no matter of this test's.
            assert 10 < sixty <= 60.5


async def test_a_call_without_deadline_has_infinite_time_remaining(open_rig):
    with trio.fail_after(20):
        async with open_rig() as rig:
            answer: list[float] = []

            async def call() -> None:
                with trio.CancelScope(shield=True):  # hides the limit of this test
                    answer.append(float((await rig.channel.unary(UNARY, text("remaining"))).value))

            await call()
            assert answer == [math.inf]


async def test_metadata_and_peer_are_visible_to_the_handler(open_rig):
    with trio.fail_after(20):
        async with open_rig() as rig:
            await rig.channel.unary(UNARY, text("identity"), metadata=[("x-one", "1"), ("x-two-bin", b"\x00\xff")])
            metadata = dict(rig.probe.facts["metadata"])
            assert metadata["x-one"] == "1"
            assert metadata["x-two-bin"] == b"\x00\xff"
            assert rig.probe.facts["peer"].startswith("ipv4:127.0.0.1:")
            assert rig.probe.facts["certificate"] is None


async def test_authorize_runs_in_the_handlers_task_and_can_refuse():
    seen: list[str] = []

    async def handler(request: StringValue, call: object) -> StringValue:
        seen.append("handler")
        return request

    async def authorize(call: object) -> None:
        seen.append("authorize")
        if ("token", "good") not in call.metadata:
            raise PermissionError

    def deny(error: Exception):
        return RpcStatus(code=Code.PERMISSION_DENIED, message="no") if isinstance(error, PermissionError) else None

    listener = Listener(name="a", address="127.0.0.1:0", serves=[serve_unary(UNARY, handler)])
    with trio.fail_after(20):
        async with (
            open_server([listener], authorize=authorize, map_error=deny) as server,
            open_channel(f"127.0.0.1:{server.port('a')}", None) as channel,
        ):
            with pytest.raises(RpcError) as refused:
                await channel.unary(UNARY, text("x"))
            assert refused.value.code is Code.PERMISSION_DENIED
            assert seen == ["authorize"]
            await channel.unary(UNARY, text("x"), metadata=[("token", "good")])
            assert seen == ["authorize", "authorize", "handler"]


async def test_calls_of_one_owner_are_ended_with_the_servers_reason_and_others_go_on():
    async def echo(call: object) -> None:
        async for message in call:
            await call.send(message)

    async def authorize(call: object) -> None:
        call.owner = dict(call.metadata)["who"]

    gone = RpcStatus(code=Code.UNAUTHENTICATED, message="the certificate is revoked")
    listener = Listener(name="a", address="127.0.0.1:0", serves=[serve_bidi(ECHO, echo)])
    with trio.fail_after(20):
        async with (
            open_server([listener], authorize=authorize) as server,
            open_channel(f"127.0.0.1:{server.port('a')}", None) as channel,
            channel.stream(ECHO, metadata=[("who", "thief")]) as thief,
            channel.stream(ECHO, metadata=[("who", "friend")]) as friend,
        ):
            for stream in (thief, friend):
                await stream.send(text("x"))
                await stream.receive()
            assert server.end_calls({"thief", "nobody"}, gone) == 1
            with pytest.raises(RpcError) as ended:
                await thief.receive()
            assert (ended.value.code, ended.value.message) == (gone.code, gone.message)
            await friend.send(text("still here"))
            assert (await friend.receive()).value == "still here"
            assert server.end_calls({"thief"}, gone) == 0


async def test_unknown_method_is_unimplemented(open_rig):
    unknown = Method(path="/probe.Probe/Nothing", request_type=StringValue, response_type=StringValue)
    with trio.fail_after(20):
        async with open_rig() as rig:
            with pytest.raises(RpcError) as caught:
                await rig.channel.unary(unknown, text("x"))
            assert caught.value.code is Code.UNIMPLEMENTED


async def test_listeners_serve_only_their_own_methods():
    async def answer(request: StringValue, call: object) -> StringValue:
        return request

    other = Method(path="/probe.Other/Unary", request_type=StringValue, response_type=StringValue)
    listeners = [
        Listener(name="a", address="127.0.0.1:0", serves=[serve_unary(UNARY, answer)]),
        Listener(name="b", address="127.0.0.1:0", serves=[serve_unary(other, answer)]),
    ]
    with trio.fail_after(20):
        async with (
            open_server(listeners) as server,
            open_channel(f"127.0.0.1:{server.port('a')}", None) as to_a,
            open_channel(f"127.0.0.1:{server.port('b')}", None) as to_b,
        ):
            assert (await to_a.unary(UNARY, text("x"))).value == "x"
            assert (await to_b.unary(other, text("y"))).value == "y"
            with pytest.raises(RpcError, match="UNIMPLEMENTED"):
                await to_b.unary(UNARY, text("x"))
