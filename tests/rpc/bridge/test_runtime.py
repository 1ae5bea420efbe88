"""The shared asyncio loop: opened and closed in any order, one per run, none left behind."""

from __future__ import annotations

import threading

import pytest
import trio

from lab.rpc_probe import ECHO, UNARY, Probe, text
from shovey_trio.rpc.bridge import Listener, open_channel, open_server, serve_bidi, serve_unary
from shovey_trio.rpc.bridge._runtime import Runtime, open_runtime


async def test_the_first_to_open_may_be_the_first_to_leave():
    probe = Probe()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            leave = trio.Event()
            left = trio.Event()

            async def first(task_status=trio.TASK_STATUS_IGNORED) -> None:
                async with open_runtime():
                    task_status.started()
                    await leave.wait()
                left.set()

            await nursery.start(first)
            listener = Listener(name="a", address="127.0.0.1:0", serves=probe.serves())
            async with (
                open_server([listener]) as server,
                open_channel(f"127.0.0.1:{server.port('a')}", None) as channel,
            ):
                leave.set()
                await left.wait()
                assert (await channel.unary(UNARY, text("still"))).value == "still"


async def test_a_task_older_than_the_bridge_can_use_a_channel(open_rig):
    """Its context was copied before the loop existed."""
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            send_channel, receive_channel = trio.open_memory_channel(1)  # one rig
            done = trio.Event()

            async def old_task() -> None:
                rig = await receive_channel.receive()
                async with rig.channel.stream(ECHO) as stream:
                    await stream.send(text("x"))
                    assert (await stream.receive()).value == "x"
                assert (await rig.channel.unary(UNARY, text("y"))).value == "y"
                done.set()

            nursery.start_soon(old_task)
            await trio.testing.wait_all_tasks_blocked()
            async with open_rig() as rig:
                await send_channel.send(rig)
                await done.wait()


async def test_opening_again_and_again_leaves_no_thread_or_task(open_rig):
    with trio.fail_after(60):
        async with open_rig() as rig:
            await rig.channel.unary(UNARY, text("x"))
        tasks, threads = trio.lowlevel.current_statistics().tasks_living, threading.active_count()
        for _ in range(10):
            async with open_rig() as rig:
                await rig.channel.unary(UNARY, text("x"))
        assert trio.lowlevel.current_statistics().tasks_living <= tasks
        assert threading.active_count() <= threads + 1


def test_one_run_after_the_other_works():
    async def session() -> str:
        listener = Listener(name="a", address="127.0.0.1:0", serves=Probe().serves())
        async with (
            open_server([listener]) as server,
            open_channel(f"127.0.0.1:{server.port('a')}", None) as channel,
        ):
            with trio.fail_after(20):
                return (await channel.unary(UNARY, text("again"))).value

    assert [trio.run(session) for _ in range(5)] == ["again"] * 5


async def test_concurrent_first_opens_share_one_loop():
    runtimes: set[Runtime] = set()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            together = trio.Event()

            async def user() -> None:
                async with open_runtime() as runtime:
                    runtimes.add(runtime)
                    if runtime.users == 20:
                        together.set()
                    await together.wait()

            for _ in range(20):
                nursery.start_soon(user)
    assert len(runtimes) == 1


async def test_cancelled_while_opening_leaves_the_bridge_usable(open_rig):
    with trio.fail_after(60):
        for steps in range(30):
            async with trio.open_nursery() as nursery:

                async def session() -> None:
                    async with open_rig() as rig:
                        await rig.channel.unary(UNARY, text("x"))

                nursery.start_soon(session)
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel(reason="the sweep cuts here")
        async with open_rig() as rig:
            assert (await rig.channel.unary(UNARY, text("x"))).value == "x"


def test_a_route_must_have_the_shape_of_its_method():
    async def handler(*_: object) -> None:
        raise AssertionError("never called")

    with pytest.raises(ValueError, match="shape"):
        serve_unary(ECHO, handler)
    with pytest.raises(ValueError, match="shape"):
        serve_bidi(UNARY, handler)


async def test_two_handlers_for_one_method_are_refused():
    probe = Probe()
    listener = Listener(name="a", address="127.0.0.1:0", serves=probe.serves() * 2)
    with pytest.raises(ValueError, match="two handlers for"):
        async with open_server([listener]):
            raise AssertionError("opened")
