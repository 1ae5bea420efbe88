"""The engine on grpc.aio: one grpc.aio server for each listener, on the asyncio loop that the run shares."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc
import grpc.aio
import trio

from shovey_trio.rpc.bridge._aio_call import AioServerCall
from shovey_trio.rpc.bridge._operation import Operation
from shovey_trio.rpc.bridge._runtime import Runtime, open_runtime
from shovey_trio.rpc.bridge._server_call import CallHost
from shovey_trio.rpc.bridge.calls import Route
from shovey_trio.rpc.bridge.listener import Listener, ServerOptions
from shovey_trio.rpc.bridge.status import ListenError
from shovey_trio.rpc.bridge.tls import ReloadableServerTls

# grpc's own grace is never what ends an RPC: the handlers' is, see ``Server.stop``.
_UNHURRIED: Final = 86_400.0
# Seconds for servers that were bound and never started to give their ports back.
_CLOSE_DEADLINE: Final = 2.0


class AioEngine:
    """See ``Engine``; made by ``open_aio_engine``."""

    def __init__(self, runtime: Runtime, host: CallHost) -> None:
        self._runtime = runtime
        self._host = host
        self._bound: list[grpc.aio.Server] = []
        self._started: list[grpc.aio.Server] = []
        self._closing: list[Operation[None]] | None = None

    def bind(self, listener: Listener, options: ServerOptions, tls: ReloadableServerTls | None) -> int:
        handler = _GenericHandler(self._host, self._runtime, listener.routes_by_path())
        with self._runtime.entered():
            server = grpc.aio.server(handlers=[handler], options=options.arguments())
            try:
                port = (
                    server.add_insecure_port(listener.address)
                    if tls is None
                    else server.add_secure_port(listener.address, tls.credentials())
                )
            except RuntimeError as error:
                raise ListenError(f"cannot listen on {listener.address} ({listener.name})") from error
        self._bound.append(server)
        return int(port)

    async def start(self, _: trio.Nursery) -> None:
        while self._bound:
            server = self._bound.pop(0)
            self._started.append(server)
            await self._runtime.run(server.start())

    def refuse(self) -> None:
        if self._closing is None:
            self._closing = [self._runtime.start(server.stop(_UNHURRIED)) for server in self._started]

    async def wait_closed(self) -> None:
        assert self._closing is not None
        for closing in self._closing:
            await closing.settled()

    async def drop(self) -> None:
        for server in self._started:
            await self._runtime.run(server.stop(None))

    async def aclose(self) -> None:
        """Nothing to end: the loop is the run's."""

    async def give_back(self) -> None:
        """Give back the ports of servers that were never started; grpc does so only in the stop of one that was."""
        for server in self._bound:
            await self._runtime.run(server.start())
            await self._runtime.run(server.stop(None))


@asynccontextmanager
async def open_aio_engine(host: CallHost) -> AsyncIterator[AioEngine]:
    """Hold the run's asyncio loop and an engine on it for the block."""
    async with open_runtime() as runtime:
        engine = AioEngine(runtime, host)
        try:
            yield engine
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_DEADLINE):
                await engine.give_back()


class _GenericHandler(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio is not typed
    """Finds the handler of a path, in the form grpc.aio calls it. Messages pass as bytes: the calls convert them."""

    def __init__(self, host: CallHost, runtime: Runtime, routes: Mapping[str, Route]) -> None:
        self._handlers = {path: _method_handler(host, runtime, route) for path, route in routes.items()}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        return self._handlers.get(handler_call_details.method)


def _method_handler(host: CallHost, runtime: Runtime, route: Route) -> grpc.RpcMethodHandler[Any, Any]:
    async def with_request(request: bytes, context: Any) -> bytes | None:
        return await AioServerCall(host, runtime, route, context, request).conduct()

    async def with_stream(_: object, context: Any) -> bytes | None:
        return await AioServerCall(host, runtime, route, context, None).conduct()

    match route.method.client_streaming, route.method.server_streaming:
        case False, False:
            return grpc.unary_unary_rpc_method_handler(with_request)
        case False, True:
            return grpc.unary_stream_rpc_method_handler(with_request)
        case True, False:
            return grpc.stream_unary_rpc_method_handler(with_stream)
        case _:
            return grpc.stream_stream_rpc_method_handler(with_stream)
