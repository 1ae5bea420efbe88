"""What one peer can make the server hold is bounded: metadata, calls on a connection, connections."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from lab.rpc_probe import ECHO, UNARY, WATCH, Probe, text
from shovey_trio.core.errors import Code, Overloaded
from shovey_trio.core.shares import Shares
from shovey_trio.rpc.bridge import Listener, RpcError, RpcStatus, ServerOptions, open_channel, open_server

from .conftest import PLAIN


async def test_too_much_metadata_is_refused(open_rig):
    with trio.fail_after(30):
        async with open_rig(options=ServerOptions(max_metadata_bytes=4096)) as rig:
            fits = [("x-small", "x" * 2_000)]
            assert (await rig.channel.unary(UNARY, text("alive"), metadata=fits)).value == "alive"
            with pytest.raises(RpcError) as caught:
                await rig.channel.unary(UNARY, text("x"), metadata=[("x-large", "x" * 6_000)])
            assert caught.value.code is Code.RESOURCE_EXHAUSTED
            assert (await rig.channel.unary(UNARY, text("alive"))).value == "alive"


async def test_call_beyond_the_limit_of_a_connection_waits_until_another_has_ended(open_rig):
    with trio.fail_after(30):
        async with open_rig(options=ServerOptions(max_concurrent_streams=2)) as rig:
            # A first answer, so that the client knows the server's settings.
            await rig.channel.unary(UNARY, text("alive"))
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(rig.channel.unary, UNARY, text("wait"))
                await rig.probe.until(lambda probe: probe.running == 2)
                # A client of its own has its own connection, and says that the server had time for more.
                async with open_channel(f"127.0.0.1:{rig.server.port(PLAIN)}", None) as other:
                    assert (await other.unary(UNARY, text("alive"))).value == "alive"
                assert rig.probe.running == 2
                rig.probe.release.set()
            assert rig.probe.ended["ok"] == 5


class _Places:
    """Two for all callers together."""

    def __init__(self) -> None:
        self.shares = Shares("calls", total=2, each=2)

    def __call__(self, call):
        return self.shares.take("anybody")


def _overloaded(error):
    return RpcStatus(code=Code.RESOURCE_EXHAUSTED, message=str(error)) if isinstance(error, Overloaded) else None


async def _refused_when_full(places, channel, method, *requests):
    with pytest.raises(RpcError) as caught:
        async with channel.stream(method, *requests) as stream:
            await stream.receive()
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    assert places.shares.taken == 2


@pytest.mark.parametrize("ends", ["answered", "cancelled"])
async def test_a_call_without_a_place_is_refused_and_every_end_of_a_call_gives_its_place_back(ends):
    probe, places = Probe(), _Places()
    listener = Listener(name=PLAIN, address="127.0.0.1:0", serves=probe.serves())
    async with open_server([listener], reserve=places, map_error=_overloaded) as server:
        with trio.fail_after(30):
            async with open_channel(f"127.0.0.1:{server.port(PLAIN)}", None) as channel:
                async with trio.open_nursery() as nursery:
                    for _ in range(2):
                        nursery.start_soon(channel.unary, UNARY, text("wait"))
                    await probe.until(lambda probe: probe.running == 2)
                    await _refused_when_full(places, channel, ECHO)
                    await _refused_when_full(places, channel, WATCH, text("idle"))
                    if ends == "answered":
                        probe.release.set()
                    else:
                        nursery.cancel_scope.cancel(reason="the clients go")
                while places.shares.taken:  # noqa: ASYNC110  # the server hears of it when it does
                    await trio.sleep(0.01)
                assert (await channel.unary(UNARY, text("alive"))).value == "alive"


async def test_a_request_that_never_comes_has_a_place_from_the_start():
    probe, places = Probe(), _Places()
    listener = Listener(name=PLAIN, address="127.0.0.1:0", serves=probe.serves())
    # What the server takes for one request, opened as a stream that says nothing.
    silent = replace(UNARY, client_streaming=True, server_streaming=True)
    async with open_server([listener], reserve=places, map_error=_overloaded) as server:
        with trio.fail_after(30):
            async with open_channel(f"127.0.0.1:{server.port(PLAIN)}", None) as channel:
                async with channel.stream(silent), channel.stream(silent):
                    while places.shares.taken < 2:  # noqa: ASYNC110  # nothing else tells
                        await trio.sleep(0.01)
                    assert probe.running == 0
                    await _refused_when_full(places, channel, ECHO)
                while places.shares.taken:  # noqa: ASYNC110
                    await trio.sleep(0.01)


async def test_connection_beyond_the_limit_is_closed_and_the_others_go_on(open_rig):
    with trio.fail_after(30):
        async with open_rig(options=ServerOptions(max_connections=1)) as rig, rig.channel.stream(ECHO) as stream:
            await stream.send(text("one"))
            assert (await stream.receive()).value == "one"
            for _ in range(3):
                raw = await trio.open_tcp_stream("127.0.0.1", rig.server.port(PLAIN))
                async with raw:
                    with trio.move_on_after(20) as patience:
                        try:
                            while await raw.receive_some():
                                pass
                        except trio.BrokenResourceError:
                            pass
                    assert not patience.cancelled_caught
            await stream.send(text("two"))
            assert (await stream.receive()).value == "two"
