"""RPCs that are under way while the server stops: cut like all others, and none of them is taken for a bug."""

from __future__ import annotations

from typing import Any

import grpc.aio
import structlog
import trio

from lab.rpc_probe import ECHO
from shovey_trio.rpc.bridge import Backend, Listener, Route, ServerCall, bidi_route, open_server
from shovey_trio.rpc.bridge._aio_call import AioServerCall
from shovey_trio.rpc.bridge._runtime import open_runtime


class _Context:
    """What grpc.aio gives a call whose server has stopped before the call was handed over."""

    def __init__(self, *, stopped: bool) -> None:
        self._stopped = stopped

    def time_remaining(self) -> None:
        return None

    async def read(self) -> Any:
        if self._stopped:
            raise grpc.aio.UsageError("Server already stopped.")


def _plain(route: Route) -> Listener:
    return Listener(name="plain", address="127.0.0.1:0", routes=[route])


async def _echo(call: ServerCall[Any, Any]) -> None:
    async for message in call:
        await call.send(message)


async def test_a_call_that_begins_after_the_others_were_cut_is_cut_too() -> None:
    route = bidi_route(ECHO, _never_ends)
    with trio.fail_after(20), structlog.testing.capture_logs() as logs:
        async with (
            open_runtime() as runtime,
            open_server([_plain(route)], backend=Backend.AIO) as server,
        ):
            await server.stop(grace=0)
            server.begin(AioServerCall(server, runtime, route, _Context(stopped=False), None))
            while server.active:  # noqa: ASYNC110
                await trio.sleep(0.01)
    assert [entry for entry in logs if entry["event"] == "rpc.failed"] == []


async def test_a_stream_whose_server_has_stopped_is_broken_and_no_bug() -> None:
    ends: list[BaseException] = []

    async def handler(call: ServerCall[Any, Any]) -> None:
        try:
            await _echo(call)
        except trio.BrokenResourceError as error:
            ends.append(error)
            raise

    route = bidi_route(ECHO, handler)
    with trio.fail_after(20), structlog.testing.capture_logs() as logs:
        async with (
            open_runtime() as runtime,
            open_server([_plain(route)], backend=Backend.AIO) as server,
        ):
            await AioServerCall(server, runtime, route, _Context(stopped=True), None).handle()
    assert len(ends) == 1
    assert [entry for entry in logs if entry["event"] == "rpc.failed"] == []


async def _never_ends(_: ServerCall[Any, Any]) -> None:
    await trio.sleep_forever()
