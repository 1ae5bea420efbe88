"""Backpressure, many streams, many cancels: bounded memory and nothing left behind."""

from __future__ import annotations

import asyncio
import gc
import resource

import trio
import trio.testing

from lab.rpc_probe import ECHO, KIB, UNARY, UPLOAD, WATCH, Probe, text
from shovey_trio.rpc.bridge import Listener, open_channel, open_server
from shovey_trio.rpc.bridge._runtime import open_runtime

# What grpc and the kernel buffer for one stalled stream, at most; messages of 1 KiB.
STALLED = 16_384
# So many are on their way when a stream has certainly begun; a busy machine may take its time until then.
BEGUN = 10


def rss_kib() -> int:
    """Resident memory now."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() // 1024


async def _until_quiet(count) -> int:
    """Return ``count()`` once it has begun to grow and then has not for half a second."""
    last = -1
    while (now := count()) != last or now <= BEGUN:
        last = now
        await trio.sleep(0.5)
    return last


async def test_a_client_that_does_not_read_stops_the_sending_handler(open_rig):
    with trio.fail_after(40):
        async with open_rig() as rig, rig.channel.stream(WATCH, text("flood")) as stream:
            sent = await _until_quiet(lambda: rig.probe.sent)
            assert sent < STALLED
            for _ in range(sent + 1000):
                await stream.receive()
            await rig.probe.until(lambda probe: probe.sent > sent + 100)


async def test_a_handler_that_does_not_read_stops_the_sending_client(open_rig):
    sent = 0
    with trio.fail_after(40):
        async with open_rig() as rig, rig.channel.stream(UPLOAD) as stream, trio.open_nursery() as nursery:

            async def send_all() -> None:
                nonlocal sent
                while True:
                    await stream.send(text(KIB))
                    sent += 1

            await stream.send(text("wait"))
            nursery.start_soon(send_all)
            stalled = await _until_quiet(lambda: sent)
            assert stalled < STALLED
            rig.probe.release.set()
            await rig.probe.until(lambda probe: probe.received > stalled + 1000)
            nursery.cancel_scope.cancel(reason="seen enough")


async def test_a_thousand_streams_are_served_at_once(open_rig):
    count = 1000
    with trio.fail_after(60):
        async with open_rig() as rig:
            opened = 0
            all_open = trio.Event()

            async def hold(number: int) -> None:
                nonlocal opened
                async with rig.channel.stream(ECHO) as stream:
                    await stream.send(text(f"first {number}"))
                    assert (await stream.receive()).value == f"first {number}"
                    opened += 1
                    if opened == count:
                        all_open.set()
                    await all_open.wait()
                    await stream.send(text(f"second {number}"))
                    assert (await stream.receive()).value == f"second {number}"
                    await stream.half_close()
                    assert [message async for message in stream] == []

            async with trio.open_nursery() as nursery:
                for number in range(count):
                    nursery.start_soon(hold, number)
                await all_open.wait()
                assert rig.server.active == count
            await rig.probe.until(lambda probe: probe.running == 0)
            assert rig.probe.ended == {"ok": count}


async def test_a_storm_of_connections_drops_no_call(authority):
    """Each agent has a connection of its own; 200 make it at once, with a TLS handshake each."""
    count = 200
    probe = Probe()
    listener = Listener(name="a", address="127.0.0.1:0", serves=probe.serves(), tls=authority.server_tls(mutual=True))
    tls = authority.client_tls("shovey://acme/node/web-1")
    with trio.fail_after(80):
        async with open_server([listener]) as server, trio.open_nursery() as nursery:

            async def agent() -> None:
                async with (
                    open_channel(f"127.0.0.1:{server.port('a')}", tls) as channel,
                    channel.stream(ECHO) as stream,
                ):
                    await stream.send(text("attached"))
                    await stream.receive()
                    await probe.until(lambda probe: probe.started["echo"] == count)

            for _ in range(count):
                nursery.start_soon(agent)
        assert probe.started == {"echo": count}


async def test_two_thousand_cancelled_calls_leave_nothing_behind(open_rig):
    """Tasks return to where they were, and memory grows no further after the first batch."""

    async def batch(rig) -> None:
        async with trio.open_nursery() as nursery:
            before = rig.probe.ended.total()
            for _ in range(100):
                nursery.start_soon(rig.channel.unary, UNARY, text("sleep"))
                nursery.start_soon(rig.channel.unary, UNARY, text("wait"))
            await rig.probe.until(lambda probe: probe.started.total() == before + 200)
            nursery.cancel_scope.cancel(reason="the test cuts the batch")
        await rig.probe.until(lambda probe: probe.running == 0)

    with trio.fail_after(60):
        async with open_runtime() as runtime, open_rig() as rig:
            for _ in range(3):
                await batch(rig)
            gc.collect()
            tasks = trio.lowlevel.current_statistics().tasks_living
            aio_tasks = len(asyncio.all_tasks(runtime.loop))
            memory = rss_kib()
            for _ in range(10):
                await batch(rig)
            await trio.testing.wait_all_tasks_blocked()
            gc.collect()
            assert rig.probe.ended == {"cancelled": 2600}
            assert trio.lowlevel.current_statistics().tasks_living <= tasks
            assert len(asyncio.all_tasks(runtime.loop)) <= aio_tasks
            assert rss_kib() < memory + 20_000


async def test_ten_thousand_calls_grow_no_memory(open_rig):
    with trio.fail_after(100):
        async with open_rig() as rig:

            async def calls(count: int) -> None:
                for _ in range(count):
                    await rig.channel.unary(UNARY, text("x"))

            async def all_calls(each: int) -> None:
                async with trio.open_nursery() as nursery:
                    for _ in range(20):
                        nursery.start_soon(calls, each)

            await all_calls(100)
            gc.collect()
            memory = rss_kib()
            await all_calls(400)
            gc.collect()
            assert rig.probe.ended == {"ok": 10_000}
            assert rss_kib() < memory + 20_000
