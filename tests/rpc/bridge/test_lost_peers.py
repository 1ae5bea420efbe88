"""Processes that die, servers that stop, strangers on the socket."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from lab.rpc_probe import ECHO, UNARY, WATCH, Probe, text
from shovey_trio.core.errors import Code
from shovey_trio.rpc.bridge import Listener, ListenError, RpcError, open_channel, open_server

HERE = Path(__file__).parent


@asynccontextmanager
async def running(*command: str) -> AsyncIterator[trio.Process]:
    """Run a script of this folder; it is gone when the block is left."""
    process = await trio.lowlevel.open_process(
        [sys.executable, str(HERE / command[0]), *command[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},  # the laboratory is on pytest's path alone
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 10):
            await process.wait()
        await trio.aclose_forcefully(process.stdout)
        await trio.aclose_forcefully(process.stderr)


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([chunk async for chunk in stream])


async def test_all_handlers_of_a_killed_client_end():
    count = 60
    probe = Probe()
    listener = Listener(name="a", address="127.0.0.1:0", serves=probe.serves())
    with trio.fail_after(40):
        async with open_server([listener]) as server:
            async with running("process_client.py", f"127.0.0.1:{server.port('a')}", str(count)) as client:
                await probe.until(lambda probe: probe.started["unary"] == count)
                assert probe.running == 4 * count
                client.send_signal(signal.SIGKILL)
                await probe.until(lambda probe: probe.running == 0)
            assert probe.ended == {"cancelled": 4 * count}
            assert server.active == 0


async def test_stopping_server_lets_short_calls_finish_and_cuts_streams():
    """The unary call in flight completes, streams that stay open end UNAVAILABLE, exit 0, silent stderr."""
    outcomes: list[str] = []
    open_streams = 0
    all_open, completed = trio.Event(), trio.Event()

    async def unary(channel) -> None:
        outcomes.append((await channel.unary(UNARY, text("wait"))).value)
        completed.set()

    async def stream(channel, method, request) -> None:
        nonlocal open_streams
        try:
            async with channel.stream(method, request) as opened:
                if request is None:
                    await opened.send(text("one"))
                await opened.receive()
                open_streams += 1
                if open_streams == 203:
                    all_open.set()
                async for _ in opened:
                    pass
        except RpcError as error:
            outcomes.append(error.code.name)

    with trio.fail_after(40):
        async with running("process_server.py") as process:
            port = int((await process.stdout.receive_some(100)).decode())
            async with open_channel(f"127.0.0.1:{port}", None) as channel, trio.open_nursery() as nursery:
                nursery.start_soon(unary, channel)
                for _ in range(100):
                    nursery.start_soon(stream, channel, WATCH, text("idle"))
                    nursery.start_soon(stream, channel, ECHO, None)
                for _ in range(3):
                    nursery.start_soon(stream, channel, WATCH, text("flood"))
                # What has answered is certainly running; a call that the server has not begun ends CANCELLED.
                await all_open.wait()
                process.send_signal(signal.SIGTERM)
                await completed.wait()
                process.send_signal(signal.SIGTERM)
            assert sorted(set(outcomes)) == ["UNAVAILABLE", "released"]
            assert outcomes.count("UNAVAILABLE") == 203
            assert await process.wait() == 0
            assert await read_all(process.stderr) == b""


async def test_new_calls_are_refused_once_the_server_is_stopped(open_rig):
    with trio.fail_after(20):
        async with open_rig() as rig:
            await rig.server.stop(grace=0)
            with pytest.raises(RpcError) as caught:
                await rig.channel.unary(UNARY, text("x"))
            assert caught.value.code is Code.UNAVAILABLE


async def test_a_second_stop_with_less_grace_wins(open_rig):
    with trio.fail_after(20):
        async with open_rig() as rig, rig.channel.stream(ECHO) as stream:
            await stream.send(text("one"))
            await stream.receive()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(rig.server.stop, grace=1000))
                await trio.testing.wait_all_tasks_blocked(0.05)
                assert rig.probe.running == 1
                nursery.start_soon(partial(rig.server.stop, grace=0))
            assert rig.probe.ended == {"cancelled": 1}


async def test_both_of_two_stops_end_when_the_last_handler_has(open_rig):
    with trio.fail_after(20):
        async with open_rig() as rig, trio.open_nursery() as nursery:
            nursery.start_soon(rig.channel.unary, UNARY, text("wait"))
            await rig.probe.until(lambda probe: probe.running == 1)
            nursery.start_soon(partial(rig.server.stop, grace=1000))
            nursery.start_soon(partial(rig.server.stop, grace=1000))
            await trio.testing.wait_all_tasks_blocked(0.05)
            rig.probe.release.set()


async def test_stop_ends_while_a_client_reads_nothing(open_rig):
    with trio.fail_after(30):
        async with open_rig() as rig, rig.channel.stream(WATCH, text("give-up")):
            await rig.probe.until(lambda probe: probe.running == 0 and probe.started["watch"] == 1)
            await rig.server.stop(grace=0)


async def test_leaving_the_block_cuts_running_handlers(open_rig):
    with trio.fail_after(20):
        async with open_rig() as rig, rig.channel.stream(ECHO) as stream:
            await stream.send(text("one"))
            await stream.receive()
        assert rig.probe.ended == {"cancelled": 1}


async def test_cancelling_the_servers_scope_ends_handlers_with_unavailable():
    probe = Probe()
    listener = Listener(name="a", address="127.0.0.1:0", serves=probe.serves())

    async def serve(task_status=trio.TASK_STATUS_IGNORED):
        with trio.CancelScope() as scope:
            async with open_server([listener]) as server:
                task_status.started((scope, server.port("a")))
                await trio.sleep_forever()

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            scope, port = await nursery.start(serve)
            async with open_channel(f"127.0.0.1:{port}", None) as channel, channel.stream(ECHO) as stream:
                await stream.send(text("one"))
                await stream.receive()
                scope.cancel(reason="the test stops the server")
                with pytest.raises(RpcError) as caught:
                    await stream.receive()
                assert caught.value.code is Code.UNAVAILABLE
        assert probe.ended == {"cancelled": 1}


async def test_unreachable_server_fails_the_call_unless_told_to_wait():
    with trio.fail_after(30):
        async with open_server([Listener(name="a", address="127.0.0.1:0", serves=())]) as server:
            port = server.port("a")
        async with open_channel(f"127.0.0.1:{port}", None) as channel:
            with pytest.raises(RpcError) as caught:
                await channel.unary(UNARY, text("x"))
            assert caught.value.code is Code.UNAVAILABLE
            with trio.move_on_after(0.5) as patience:
                await channel.unary(UNARY, text("x"), wait_for_ready=True)
            assert patience.cancelled_caught


async def test_channel_reconnects_to_a_restarted_server():
    probe = Probe()
    with trio.fail_after(40):
        async with open_server([Listener(name="a", address="127.0.0.1:0", serves=())]) as server:
            address = f"127.0.0.1:{server.port('a')}"
            async with open_channel(address, None) as channel:
                with pytest.raises(RpcError, match="UNIMPLEMENTED"):
                    await channel.unary(UNARY, text("x"))
                await server.stop(grace=0)
                again = Listener(name="a", address=address, serves=probe.serves())
                async with open_server([again]):
                    answer = await channel.unary(UNARY, text("back"), wait_for_ready=True)
                    assert answer.value == "back"


async def test_an_address_in_use_is_a_typed_error(open_rig):
    with trio.fail_after(20):
        async with open_rig() as rig:
            taken = Listener(name="b", address=f"127.0.0.1:{rig.server.port('plain')}", serves=())
            free = Listener(name="a", address="127.0.0.1:0", serves=())
            with pytest.raises(ListenError):
                async with open_server([free, taken]):
                    raise AssertionError("opened on a taken port")


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00" * 4096,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 70_000,
    ],
    ids=["zeros", "http1", "broken-http2"],
)
async def test_garbage_on_the_socket_does_not_stop_the_server(open_rig, garbage):
    with trio.fail_after(20):
        async with open_rig() as rig:
            for _ in range(20):
                async with await trio.open_tcp_stream("127.0.0.1", rig.server.port("plain")) as stranger:
                    try:
                        await stranger.send_all(garbage)
                        while await stranger.receive_some(65536):
                            pass
                    except trio.BrokenResourceError:
                        pass
            assert (await rig.channel.unary(UNARY, text("alive"))).value == "alive"
