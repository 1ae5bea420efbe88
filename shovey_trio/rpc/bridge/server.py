"""gRPC servers inside trio: listeners, routes, authorization, errors, and an end in order."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import grpc
import grpc.aio
import structlog
import trio

from shovey_trio.core.errors import Code
from shovey_trio.rpc.bridge._aio_call import AioServerCall
from shovey_trio.rpc.bridge._operation import Operation
from shovey_trio.rpc.bridge._runtime import Runtime, open_runtime
from shovey_trio.rpc.bridge.calls import Authorize, Route
from shovey_trio.rpc.bridge.status import AbortRpc, ListenError, RpcStatus
from shovey_trio.rpc.bridge.tls import ReloadableServerTls, ServerTls

_log = structlog.get_logger(__name__)

MapError = Callable[[Exception], RpcStatus | None]
"""Returns the status for an error that a handler let out, or ``None`` if it is a bug."""

# Seconds for statuses to reach the clients and connections to close after the handlers have ended.
_CLOSE_DEADLINE: Final = 2.0
# grpc's own grace is never what ends an RPC: the handlers' is, see ``Server.stop``.
_UNHURRIED: Final = 86_400.0
_START_DEADLINE: Final = 10.0


class Backend(StrEnum):
    """Which engine serves; all pass the same conformance suite."""

    AIO = "aio"  # grpc.aio on trio-asyncio's loop


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """One address and what is served there.

    Attributes:
        name: key for ``Server.port`` and ``Server.reload_tls``.
        address: ``host:port``; port 0 takes a free one.
        routes: methods served here; any other is UNIMPLEMENTED.
        tls: ``None`` serves plain text, for tests and loopback.
    """

    name: str
    address: str
    routes: Sequence[Route]
    tls: ServerTls | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Limits and keepalive of a server.

    Attributes:
        max_receive_bytes: largest request message; a larger one ends its RPC with RESOURCE_EXHAUSTED.
        max_concurrent_streams: RPCs in progress on one connection; further ones wait in the client.
        keepalive_interval: seconds between pings on a silent connection.
        keepalive_timeout: seconds without an answer after which a connection is lost.
        min_ping_interval: seconds; clients that ping more often are disconnected.
    """

    max_receive_bytes: int = 4 * 1024 * 1024
    max_concurrent_streams: int = 10_000
    keepalive_interval: float = 60.0
    keepalive_timeout: float = 20.0
    min_ping_interval: float = 5.0

    def arguments(self) -> list[tuple[str, int]]:
        """Return the C core's channel arguments."""
        return [
            ("grpc.max_receive_message_length", self.max_receive_bytes),
            ("grpc.max_concurrent_streams", self.max_concurrent_streams),
            ("grpc.keepalive_time_ms", round(self.keepalive_interval * 1000)),
            ("grpc.keepalive_timeout_ms", round(self.keepalive_timeout * 1000)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", round(self.min_ping_interval * 1000)),
            # The defaults drop calls when thousands of agents connect at once.
            ("grpc.server.max_pending_requests", 100_000),
            ("grpc.server.max_pending_requests_hard_limit", 200_000),
            ("grpc.server_max_unrequested_time_in_server", 120),
            # With probing, one stalled upload pins 4.2 MiB here; without, 0.2 MiB.
            ("grpc.http2.bdp_probe", 0),
            # A second daemon on the same port must fail, not take half of the connections.
            ("grpc.so_reuseport", 0),
        ]


class Server:
    """A running server; made by ``open_server``."""

    def __init__(
        self,
        runtime: Runtime,
        authorize: Authorize | None,
        map_error: MapError | None,
    ) -> None:
        self.runtime = runtime
        self._nursery: trio.Nursery | None = None
        self._authorize = authorize
        self._map_error = map_error
        self._calls: set[AioServerCall] = set()
        self._idle = trio.Event()  # set while no handler runs
        self._idle.set()
        self._servers: list[grpc.aio.Server] = []
        self._stopping: list[Operation[None]] | None = None
        self._cutting = False
        self._closing = trio.Lock()
        self._ports: dict[str, int] = {}
        self._tls: dict[str, ReloadableServerTls] = {}

    @property
    def active(self) -> int:
        """Handlers that are running."""
        return len(self._calls)

    def port(self, listener: str) -> int:
        """Return the port that the listener of that name is bound to."""
        return self._ports[listener]

    def reload_tls(self, listener: str, tls: ServerTls) -> None:
        """Use ``tls`` for new connections of a listener.

        Raises:
            KeyError: no TLS listener of that name.
            ValueError: whether clients must present a certificate cannot be changed.
        """
        self._tls[listener].replace(tls)

    async def stop(self, *, grace: float) -> None:
        """Stop accepting, let handlers end for ``grace`` seconds, cancel the rest, close the connections.

        RPCs that are cut short end UNAVAILABLE. May be called again with another grace; the shortest one wins.
        Cancellation: the server stays as far stopped as it got; leaving ``open_server`` finishes it.
        """
        if self._stopping is None:
            self._stopping = [self.runtime.start(server.stop(_UNHURRIED)) for server in self._servers]
        with trio.move_on_after(grace):
            while self._calls:
                await self._idle.wait()
        self._cutting = True
        for call in list(self._calls):
            call.cancel("the server is going away")
        async with self._closing:  # an operation has one waiter
            with trio.move_on_after(_CLOSE_DEADLINE):
                for closing in self._stopping:
                    await closing.settled()
            if not all(closing.done for closing in self._stopping):
                # A client that neither reads nor closes; grpc drops its connection now.
                for server in self._servers:
                    await self.runtime.run(server.stop(None))

    # -- what AioServerCall needs (CallHost)

    def begin(self, call: AioServerCall) -> None:
        if not self._calls:
            self._idle = trio.Event()
        self._calls.add(call)
        assert self._nursery is not None  # calls arrive after ``start``
        self._nursery.start_soon(call.handle, name=call.method.path)
        if self._cutting:  # it was under way when the others were cut
            call.cancel("the server is going away")

    def end(self, call: AioServerCall) -> None:
        self._calls.discard(call)
        if not self._calls:
            self._idle.set()

    async def admit(self, call: AioServerCall) -> None:
        if self._authorize is not None:
            await self._authorize(call)

    def status_for(self, error: Exception, call: AioServerCall) -> RpcStatus:
        for leaf in _leaves(error):
            if isinstance(leaf, AbortRpc):
                return leaf.status
            if self._map_error is not None and (status := self._map_error(leaf)) is not None:
                return status
        incident = secrets.token_hex(6)
        _log.error("rpc.failed", method=call.method.path, incident=incident, exc_info=error)
        return RpcStatus(code=Code.INTERNAL, message=f"internal error, incident {incident}")

    # -- starting

    async def bind(self, listeners: Sequence[Listener], options: ServerOptions) -> None:
        """Bind all ``listeners``, or none."""
        if len({listener.name for listener in listeners}) < len(listeners):
            raise ValueError("two listeners have the same name")
        try:
            for listener in listeners:
                with self.runtime.entered():
                    server = grpc.aio.server(
                        handlers=[_GenericHandler(self, listener.routes)], options=options.arguments()
                    )
                    self._ports[listener.name] = self._bind(server, listener)
                self._servers.append(server)
        except BaseException:
            # grpc gives a port back only in the shutdown of a server that was started.
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_DEADLINE):
                for server in self._servers:
                    await self.runtime.run(server.start())
                    await self.runtime.run(server.stop(None))
            raise

    async def start(self, nursery: trio.Nursery) -> None:
        """Accept connections; handlers become children of ``nursery``."""
        self._nursery = nursery
        for server in self._servers:
            await self.runtime.run(server.start())
        for name, port in self._ports.items():
            _log.info("rpc.listening", listener=name, port=port)

    def _bind(self, server: grpc.aio.Server, listener: Listener) -> int:
        try:
            if listener.tls is None:
                return int(server.add_insecure_port(listener.address))
            self._tls[listener.name] = tls = ReloadableServerTls(listener.tls)
            return int(server.add_secure_port(listener.address, tls.credentials()))
        except RuntimeError as error:
            raise ListenError(f"cannot listen on {listener.address} ({listener.name})") from error


@asynccontextmanager
async def open_server(
    listeners: Sequence[Listener],
    *,
    authorize: Authorize | None = None,
    map_error: MapError | None = None,
    options: ServerOptions | None = None,
    backend: Backend = Backend.AIO,
) -> AsyncIterator[Server]:
    """Serve ``listeners`` for the block; ports are bound when it is entered.

    Every handler is a child task of this block, in a cancel scope of its own. Leaving the block, by whatever way, cuts
    handlers that still run (``Server.stop`` before that gives them time); a handler that shields itself is waited for.
    A handler's exception never leaves its RPC: ``AbortRpc`` gives its status, ``map_error`` maps known errors
    (exception groups are searched for one), anything else is INTERNAL with an incident id that the log explains.

    Raises:
        ListenError: an address cannot be listened on.
    """
    assert backend is Backend.AIO
    async with open_runtime() as runtime:
        server = Server(runtime, authorize, map_error)
        await server.bind(listeners, options or ServerOptions())
        async with trio.open_nursery() as nursery:
            try:
                with trio.fail_after(_START_DEADLINE, shield=True):
                    await server.start(nursery)
                yield server
            finally:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 3 * _CLOSE_DEADLINE):
                    await server.stop(grace=0)


class _GenericHandler(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio is not typed
    """Finds the handler of a path, in the form grpc.aio calls it. Messages pass as bytes: the calls convert them."""

    def __init__(self, host: Server, routes: Sequence[Route]) -> None:
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        for route in routes:
            if route.method.path in self._handlers:
                raise ValueError(f"two routes for {route.method.path}")
            self._handlers[route.method.path] = _method_handler(host, route)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        return self._handlers.get(handler_call_details.method)


def _method_handler(host: Server, route: Route) -> grpc.RpcMethodHandler[Any, Any]:
    async def with_request(request: bytes, context: Any) -> bytes | None:
        return await AioServerCall(host, route, context, request).conduct()

    async def with_stream(_: object, context: Any) -> bytes | None:
        return await AioServerCall(host, route, context, None).conduct()

    match route.method.client_streaming, route.method.server_streaming:
        case False, False:
            return grpc.unary_unary_rpc_method_handler(with_request)
        case False, True:
            return grpc.unary_stream_rpc_method_handler(with_request)
        case True, False:
            return grpc.stream_unary_rpc_method_handler(with_stream)
        case _:
            return grpc.stream_stream_rpc_method_handler(with_stream)


def _leaves(error: Exception) -> Iterator[Exception]:
    if isinstance(error, ExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
