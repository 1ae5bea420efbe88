"""gRPC servers inside trio: listeners, methods, authorization, errors, and an end in order."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import structlog
import trio

from shovey_trio.core.errors import Code
from shovey_trio.rpc.bridge._cygrpc import check_grpcio
from shovey_trio.rpc.bridge._engine import Engine, open_engine
from shovey_trio.rpc.bridge._server_call import GOING_AWAY, HandledCall
from shovey_trio.rpc.bridge.calls import Authorize, Reserve
from shovey_trio.rpc.bridge.listener import Listener, ServerOptions
from shovey_trio.rpc.bridge.methods import Method
from shovey_trio.rpc.bridge.status import AbortRpc, RpcStatus
from shovey_trio.rpc.bridge.tls import ReloadableServerTls, ServerTls

_log = structlog.get_logger(__name__)

MapError = Callable[[Exception], RpcStatus | None]
"""Returns the status for an error that a handler let out, or ``None`` if it is a bug."""

# Seconds for statuses to reach the clients and connections to close after the handlers have ended.
_CLOSE_DEADLINE: Final = 2.0
_START_DEADLINE: Final = 10.0
# Seconds in which a stop lets streams of both directions say their last words.
_LAST_WORDS: Final = 2.0


class Server:
    """A running server; made by ``open_server``."""

    def __init__(self, reserve: Reserve | None, authorize: Authorize | None, map_error: MapError | None) -> None:
        self._reserve = reserve
        self._authorize = authorize
        self._map_error = map_error
        self._engine: Engine | None = None
        self._nursery: trio.Nursery | None = None
        self._calls: set[HandledCall] = set()
        self._idle = trio.Event()  # set while no handler runs
        self._idle.set()
        self._cutting = False
        self._closing = trio.Lock()
        self._closed = False
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

    def end_calls(self, owners: Collection[str], status: RpcStatus) -> int:
        """Cut every call in progress whose ``owner`` is one of ``owners``, with ``status``; return how many there were.

        Calls that come later are for the authorization hook to refuse.
        """
        ended = [call for call in self._calls if call.owner in owners]
        for call in ended:
            call.cut(status)
        return len(ended)

    async def stop(self, *, grace: float) -> None:
        """Stop accepting, let handlers end for ``grace`` seconds, cancel the rest, close the connections.

        Only calls with a single answer have all of the grace. A stream of answers would last for as long as its client
        likes: it is cut at once, and its client asks again behind what it has. Streams of both directions have a
        moment for what is under way.

        RPCs that are cut short end UNAVAILABLE. May be called again with another grace; the shortest one wins.
        Cancellation: the server stays as far stopped as it got; leaving ``open_server`` finishes it.
        """
        engine = self._engine
        assert engine is not None  # nobody has the server before it serves
        engine.refuse()
        with trio.move_on_after(grace):
            self._cut(lambda method: method.server_streaming and not method.client_streaming)
            with trio.move_on_after(_LAST_WORDS):
                await self._wait_idle()
            self._cut(lambda method: method.server_streaming or method.client_streaming)
            await self._wait_idle()
        self._cutting = True
        self._cut(lambda _: True)
        async with self._closing:
            with trio.move_on_after(_CLOSE_DEADLINE):
                await engine.wait_closed()
                self._closed = True
            if not self._closed:
                await engine.drop()

    def _cut(self, which: Callable[[Method[Any, Any]], bool]) -> None:
        for call in list(self._calls):
            if which(call.method):
                call.cut(GOING_AWAY)

    async def _wait_idle(self) -> None:
        while self._calls:
            await self._idle.wait()

    # -- what calls need (CallHost)

    def reserve(self, call: HandledCall) -> Callable[[], None] | None:
        return None if self._reserve is None else self._reserve(call)

    def begin(self, call: HandledCall) -> None:
        if not self._calls:
            self._idle = trio.Event()
        self._calls.add(call)
        assert self._nursery is not None  # calls arrive after ``start``
        self._nursery.start_soon(call.handle, name=call.method.path)
        if self._cutting:  # it was under way when the others were cut
            call.cancel("the server is going away")

    def end(self, call: HandledCall) -> None:
        self._calls.discard(call)
        if not self._calls:
            self._idle.set()

    async def admit(self, call: HandledCall) -> None:
        if self._authorize is not None:
            await self._authorize(call)

    def status_for(self, error: Exception, call: HandledCall) -> RpcStatus:
        for leaf in _leaves(error):
            if isinstance(leaf, AbortRpc):
                return leaf.status
            if self._map_error is not None and (status := self._map_error(leaf)) is not None:
                return status
        incident = secrets.token_hex(6)
        _log.error("rpc.failed", method=call.method.path, incident=incident, exc_info=error)
        return RpcStatus(code=Code.INTERNAL, message=f"internal error, incident {incident}")

    # -- starting

    def bind(self, engine: Engine, listeners: Sequence[Listener], options: ServerOptions) -> None:
        """Bind ``listeners``; ``engine`` gives back those that were bound if one cannot be."""
        if len({listener.name for listener in listeners}) < len(listeners):
            raise ValueError("two listeners have the same name")
        for listener in listeners:
            tls = None if listener.tls is None else ReloadableServerTls(listener.tls)
            self._ports[listener.name] = engine.bind(listener, options, tls)
            if tls is not None:
                self._tls[listener.name] = tls
        self._engine = engine

    async def start(self, nursery: trio.Nursery) -> None:
        """Accept connections; handlers become children of ``nursery``."""
        assert self._engine is not None  # ``bind`` comes first
        self._nursery = nursery
        await self._engine.start(nursery)
        for name, port in self._ports.items():
            _log.info("rpc.listening", listener=name, port=port)


@asynccontextmanager
async def open_server(
    listeners: Sequence[Listener],
    *,
    reserve: Reserve | None = None,
    authorize: Authorize | None = None,
    map_error: MapError | None = None,
    options: ServerOptions | None = None,
) -> AsyncIterator[Server]:
    """Serve ``listeners`` for the block; ports are bound when it is entered.

    Every handler is a child task of this block, in a cancel scope of its own. Leaving the block, by whatever way, cuts
    handlers that still run (``Server.stop`` before that gives them time); a handler that shields itself is waited for.
    A handler's exception never leaves its RPC: ``AbortRpc`` gives its status, ``map_error`` maps known errors
    (exception groups are searched for one), anything else is INTERNAL with an incident id that the log explains.

    Raises:
        ConfigurationInvalid: the grpcio that is installed is not one that this was made for.
        ListenError: an address cannot be listened on.
    """
    check_grpcio()
    server = Server(reserve, authorize, map_error)
    async with open_engine(server) as engine:
        server.bind(engine, listeners, options or ServerOptions())
        async with trio.open_nursery() as nursery:
            try:
                with trio.fail_after(_START_DEADLINE, shield=True):
                    await server.start(nursery)
                yield server
            finally:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 3 * _CLOSE_DEADLINE):
                    await server.stop(grace=0)
                with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_DEADLINE):
                    await engine.aclose()


def _leaves(error: Exception) -> Iterator[Exception]:
    if isinstance(error, ExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
