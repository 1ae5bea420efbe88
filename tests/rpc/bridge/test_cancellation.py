"""Client cancel, deadlines, killed clients, and what a cancelled receive or send leaves behind."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from lab.rpc_probe import ECHO, UNARY, UPLOAD, WATCH, text
from shovey_trio.core.errors import Code
from shovey_trio.rpc.bridge import RpcError


async def _unary(rig):
    await rig.channel.unary(UNARY, text("sleep"))


async def _idle_watch(rig):
    async with rig.channel.stream(WATCH, text("idle")) as stream:
        async for _ in stream:
            pass


async def _running_watch(rig):
    async with rig.channel.stream(WATCH, text("flood")) as stream:
        async for _ in stream:
            pass


async def _idle_upload(rig):
    async with rig.channel.stream(UPLOAD) as stream:
        await stream.send(text("one"))
        await trio.sleep_forever()


async def _running_upload(rig):
    async with rig.channel.stream(UPLOAD) as stream:
        while True:
            await stream.send(text("more"))


async def _stuck_upload(rig):
    async with rig.channel.stream(UPLOAD) as stream:
        await stream.send(text("sleep"))
        await trio.sleep_forever()


async def _idle_echo(rig):
    async with rig.channel.stream(ECHO) as stream:
        await stream.send(text("one"))
        await stream.receive()
        await trio.sleep_forever()


async def _running_echo(rig):
    async with rig.channel.stream(ECHO) as stream:
        while True:
            await stream.send(text("one"))
            await stream.receive()


SHAPES = [
    _unary,
    _idle_watch,
    _running_watch,
    _idle_upload,
    _running_upload,
    _stuck_upload,
    _idle_echo,
    _running_echo,
]


def _is_working(shape, probe) -> bool:
    """Whether the handler of ``shape`` is in the state the test means to cut."""
    if shape is _running_watch:
        return probe.sent > 20
    if shape in (_idle_upload, _running_upload, _stuck_upload):
        return probe.received > (20 if shape is _running_upload else 0)
    return probe.running == 1


@pytest.mark.parametrize("shape", SHAPES)
async def test_client_cancel_cancels_the_handler(open_rig, shape):
    with trio.fail_after(20):
        async with open_rig() as rig:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(shape, rig)
                await rig.probe.until(lambda probe: _is_working(shape, probe))
                nursery.cancel_scope.cancel(reason="the test cuts the RPC here")
            await rig.probe.until(lambda probe: probe.running == 0)
            # A send may meet the closed call before the cancellation does; nothing else may end a handler here.
            assert set(rig.probe.ended) <= {"cancelled", "BrokenResourceError"}
            assert rig.probe.ended["cancelled"] == 1 or shape in (_running_watch, _running_echo)
            assert (await rig.channel.unary(UNARY, text("alive"))).value == "alive"


@pytest.mark.parametrize("shape", [_unary, _idle_watch, _stuck_upload, _idle_echo])
async def test_deadline_cancels_client_and_handler(open_rig, shape):
    with trio.fail_after(60):
        async with open_rig() as rig:
            # On a busy machine a deadline may be over before the call is there; then there was no handler to cancel.
            for patience in (0.3, 1.0, 3.0, 9.0):
                with trio.move_on_after(patience) as limit:
                    await shape(rig)
                assert limit.cancelled_caught
                await rig.probe.until(lambda probe: probe.running == 0)
                if rig.probe.started:
                    break
            assert set(rig.probe.ended) == {"cancelled"}


async def test_cancelled_server_receive_loses_nothing(open_rig):
    with trio.fail_after(20):
        async with open_rig() as rig, rig.channel.stream(ECHO) as stream:
            await stream.send(text("slow-receive"))
            await rig.probe.until(lambda probe: "timed_out" in probe.facts)
            for number in range(8):
                seen = rig.probe.facts["timed_out"]
                await stream.send(text(str(number)))
                if number < 7:
                    await rig.probe.until(lambda probe, seen=seen: probe.facts["timed_out"] > seen + 1)
            await rig.probe.until(lambda probe: "got" in probe.facts)
            assert rig.probe.facts["got"] == [str(number) for number in range(8)]
            assert (await stream.receive()).value == "slow-receive"


async def test_cancelled_client_receive_loses_nothing(open_rig):
    with trio.fail_after(20):
        async with open_rig() as rig, rig.channel.stream(ECHO) as stream:
            got: list[str] = []
            for number in range(8):
                with trio.move_on_after(0.005):
                    while True:
                        got.append((await stream.receive()).value)
                await stream.send(text(str(number)))
            await stream.half_close()
            got.extend([message.value async for message in stream])
            assert got == [str(number) for number in range(8)]


async def test_receive_cancelled_at_any_moment_loses_nothing(open_rig):
    """The sweep: each receive is cut after a random-ish number of scheduler steps, hundreds of times."""
    total = 300
    with trio.fail_after(30):
        async with open_rig() as rig, rig.channel.stream(ECHO) as stream, trio.open_nursery() as nursery:

            async def send_all() -> None:
                for number in range(total):
                    await stream.send(text(str(number)))

            nursery.start_soon(send_all)
            got: list[str] = []
            steps = 0
            while len(got) < total:
                steps = (steps + 1) % 13
                async with trio.open_nursery() as attempt:

                    async def receive_one() -> None:
                        got.append((await stream.receive()).value)

                    attempt.start_soon(receive_one)
                    for _ in range(steps):
                        await trio.lowlevel.checkpoint()
                    attempt.cancel_scope.cancel(reason="the sweep cuts here")
            assert got == [str(number) for number in range(total)]


async def test_cancel_at_every_step_of_every_shape_ends_all_handlers(open_rig):
    """Cuts each shape after 0, 1, 2, … scheduler steps; whatever was begun must end and the server must go on."""
    with trio.fail_after(60):
        async with open_rig() as rig:
            for shape in SHAPES:
                for steps in range(40):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(shape, rig)
                        for _ in range(steps):
                            await trio.lowlevel.checkpoint()
                        nursery.cancel_scope.cancel(reason="the sweep cuts here")
            assert (await rig.channel.unary(UNARY, text("alive"))).value == "alive"
            await rig.probe.until(lambda probe: probe.running == 0)
            assert set(rig.probe.ended) <= {"cancelled", "ok", "BrokenResourceError"}


async def test_error_after_a_cancelled_send_still_reaches_a_stalled_client(open_rig):
    """The handler gives up a send that flow control holds back and fails; the client learns why once it reads."""
    with trio.fail_after(30):
        async with open_rig() as rig, rig.channel.stream(WATCH, text("give-up")) as stream:
            await rig.probe.until(lambda probe: probe.running == 0 and probe.started["watch"] == 1)
            with pytest.raises(RpcError) as caught:
                async for _ in stream:
                    pass
            assert caught.value.code is Code.NOT_FOUND


async def test_leaving_the_stream_block_cancels_the_handler(open_rig):
    with trio.fail_after(20):
        async with open_rig() as rig:
            async with rig.channel.stream(ECHO) as stream:
                await stream.send(text("one"))
                await stream.receive()
            await rig.probe.until(lambda probe: probe.running == 0)
            assert rig.probe.ended == {"cancelled": 1}


async def test_cancelled_upload_never_looks_complete(open_rig):
    """grpc.aio shows a lost client as end of stream; the handler must not return as if the upload were whole."""
    with trio.fail_after(30):
        async with open_rig() as rig:
            for _ in range(50):
                async with rig.channel.stream(UPLOAD) as stream:
                    before = rig.probe.received
                    await stream.send(text("part"))
                    await rig.probe.until(lambda probe, before=before: probe.received > before)
                await rig.probe.until(lambda probe: probe.running == 0)
            assert rig.probe.ended == {"cancelled": 50}
