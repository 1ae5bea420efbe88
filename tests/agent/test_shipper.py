"""The stream for output: there while there is output, gone while there is none, and never a byte lost between."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from shovey_agent.net import shipper as shipper_module
from shovey_agent.net.shipper import OutputShipper
from shovey_trio.rpc import methods
from shovey_trio.rpc.bridge import Listener, ServerCall, open_channel, open_server, serve_bidi
from shovey_trio.v1 import agent_service_pb2 as pb


class Controller:
    """Takes output and acknowledges it, as the controller does."""

    def __init__(self) -> None:
        self.opened = 0
        self.ended = 0
        self.output: dict[str, bytearray] = {}
        self._news = trio.Event()

    async def push(self, call: ServerCall[pb.PushOutputRequest, pb.PushOutputResponse]) -> None:
        self.opened += 1
        self._tell()
        try:
            async for request in call:
                taken = self.output.setdefault(request.run_id, bytearray())
                assert request.chunk.position == len(taken)
                taken += request.chunk.data
                await call.send(pb.PushOutputResponse(run_id=request.run_id, durable_position=len(taken)))
                self._tell()
        finally:
            self.ended += 1
            self._tell()

    async def until(self, opened: int, ended: int, output: dict[str, bytes]) -> None:
        while (self.opened, self.ended, self.output) != (opened, ended, output):
            await self._news.wait()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()


@asynccontextmanager
async def shipping(runner, controller: Controller) -> AsyncIterator[OutputShipper]:
    """A shipper that ships to ``controller``."""
    serves = [serve_bidi(methods.PUSH_OUTPUT, controller.push)]
    listener = Listener(name="a", address="127.0.0.1:0", serves=serves)
    async with (
        open_server([listener]) as server,
        open_channel(f"127.0.0.1:{server.port('a')}", None) as channel,
        trio.open_nursery() as nursery,
    ):
        shipper = OutputShipper(runner.executor)
        nursery.start_soon(shipper.ship, channel)
        yield shipper
        nursery.cancel_scope.cancel(reason="the test is over")


async def test_a_run_without_output_opens_no_stream(open_runner):
    controller = Controller()
    async with open_runner() as runner, shipping(runner, controller) as shipper:
        silent = await runner.python("")
        await runner.finished(silent)
        shipper.grew(silent)
        await trio.sleep(0.2)  # time to do the wrong thing; the right thing needs none
        assert controller.opened == 0
        assert shipper.is_shipped(silent)


async def test_the_stream_is_opened_by_the_first_output_and_kept_for_the_next(open_runner):
    controller = Controller()
    async with open_runner() as runner, shipping(runner, controller) as shipper:
        first = await runner.python("print('one')")
        await runner.finished(first)
        shipper.grew(first)
        await controller.until(1, 0, {first: b"one\n"})
        second = await runner.python("print('two')")
        await runner.finished(second)
        shipper.grew(second)
        await controller.until(1, 0, {first: b"one\n", second: b"two\n"})


async def test_an_idle_stream_is_closed_in_order_and_a_later_run_opens_another(
    open_runner, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shipper_module, "_IDLE", 0.05)
    controller = Controller()
    async with open_runner() as runner, shipping(runner, controller) as shipper:
        first = await runner.python("print('x' * 300_000)")
        await runner.finished(first)
        shipper.grew(first)
        await controller.until(1, 1, {first: b"x" * 300_000 + b"\n"})
        assert shipper.is_shipped(first)
        second = await runner.python("print('two')")
        await runner.finished(second)
        shipper.grew(second)
        await controller.until(2, 2, {first: b"x" * 300_000 + b"\n", second: b"two\n"})
