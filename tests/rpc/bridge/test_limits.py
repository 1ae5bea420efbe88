"""What one peer can make the server hold is bounded: metadata, calls on a connection, connections."""

from __future__ import annotations

import pytest
import trio

from lab.rpc_probe import ECHO, UNARY, text
from shovey_trio.core.errors import Code
from shovey_trio.rpc.bridge import RpcError, ServerOptions, open_channel

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
