"""An HTTP listener: accepts connections, bounds them, and ends them in order."""

from __future__ import annotations

import ssl
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import structlog
import trio

from shovey_trio.core.addresses import join_address, peer_address, split_address
from shovey_trio.core.trust.attempt_limits import host_of
from shovey_trio.http.asgi import App
from shovey_trio.http.connection import HttpConnection, HttpLimits

_log = structlog.get_logger(__name__)

_BACKLOG: Final = 512
_TLS_HANDSHAKE: Final = 10.0
# For telling a client beyond the cap so; it is one packet.
_TURN_AWAY: Final = 1.0
_TURNED_AWAY: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: 35\r\n"
    b'Retry-After: 5\r\nConnection: close\r\n\r\n{"error":["too many connections"]}\n'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpOptions:
    """How the listener serves.

    Attributes:
        connections: open at a time. For a further one, the one that has been between requests for longest is closed;
            when there is none, the new one is answered 503 and closed. About 100 KiB each at most, a body that is
            being read not counted. Those that are being closed come on top, for a moment.
        connections_per_peer: of those, from one address; what is closed for a further one is of that address too.
        tls: None serves plain text.
    """

    connections: int = 1_000
    connections_per_peer: int = 1_000
    limits: HttpLimits = field(default_factory=HttpLimits)
    tls: ssl.SSLContext | None = None


class HttpServer:
    """A listener that serves; made by ``open_http_server``."""

    def __init__(self, app: App, options: HttpOptions) -> None:
        self._app = app
        self._options = options
        self._connections: set[HttpConnection] = set()
        # Connections by host, those in their handshake included; and how many that is together.
        self._by_host: Counter[str] = Counter()
        self._open = 0
        # Those between requests, the one that waits for longest first: of all, and by host.
        self._idle: dict[HttpConnection, str] = {}
        self._idle_by_host: defaultdict[str, dict[HttpConnection, None]] = defaultdict(dict)
        self._accepting = trio.CancelScope()
        self._empty = trio.Event()
        self.stopping = False
        self.address = ""

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return split_address(self.address)[1]

    async def stop(self, *, grace: float) -> None:
        """Takes no more connections, lets requests that are being handled end, and returns when they have.

        Args:
            grace: seconds after which the rest is left to the end of the ``open_http_server`` block, which cuts it off.
        """
        self.stopping = True
        self._accepting.cancel(reason="the server stops")
        for connection in set(self._connections):
            connection.release_idle(reason="the server stops")
        with trio.move_on_after(grace):
            while self._connections:
                self._empty = trio.Event()
                await self._empty.wait()

    async def serve(
        self,
        listeners: list[trio.SocketListener],
        connections: trio.Nursery,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accepts until ``stop``; connections live on in their nursery."""
        task_status.started()
        with self._accepting:
            await trio.serve_listeners(self._serve_stream, listeners, handler_nursery=connections)

    async def _serve_stream(self, stream: trio.SocketStream) -> None:
        peer = _peer(stream)
        host = host_of(peer_address(peer))
        here = self._by_host[host]
        if not self._make_room(host):
            _log.warning("http.turned_away", connections=self._options.connections, peer=peer, of_peer=here)
            await _turn_away(stream, plain=self._options.tls is None)
            return
        self._by_host[host] += 1
        self._open += 1
        try:
            await self._serve_peer(stream, peer, host)
        finally:
            self._open -= 1
            self._by_host[host] -= 1
            if not self._by_host[host]:
                del self._by_host[host]

    def _make_room(self, host: str) -> bool:
        """Whether another connection of the host may be served; an idle one is ended for it where a bound is reached.

        An old node reports once and keeps its connection for a while: its silence must not cost another's report.
        """
        if self._by_host[host] >= self._options.connections_per_peer:
            longest = next(iter(self._idle_by_host.get(host, ())), None)
        elif self._open >= self._options.connections:
            longest = next(iter(self._idle), None)
        else:
            return True
        if longest is None:
            return False
        self._note_idle(longest, self._idle[longest], is_idle=False)
        longest.release_idle(reason="its place is needed")
        return True

    def _note_idle(self, connection: HttpConnection, host: str, *, is_idle: bool) -> None:
        if is_idle:
            self._idle[connection] = host
            self._idle_by_host[host][connection] = None
        elif self._idle.pop(connection, None) is not None:
            of_host = self._idle_by_host[host]
            del of_host[connection]
            if not of_host:
                del self._idle_by_host[host]

    async def _serve_peer(self, stream: trio.SocketStream, peer: str, host: str) -> None:
        if self._options.tls is None:
            await self._serve_connection(stream, scheme="http", peer=peer, host=host)
            return
        secure: trio.SSLStream[trio.SocketStream] = trio.SSLStream(
            stream, self._options.tls, server_side=True, https_compatible=True
        )
        try:
            with trio.fail_after(_TLS_HANDSHAKE):
                await secure.do_handshake()
        except (trio.TooSlowError, trio.BrokenResourceError) as error:
            _log.info("http.handshake_failed", peer=peer, error=str(error))
            await trio.aclose_forcefully(secure)
            return
        await self._serve_connection(secure, scheme="https", peer=peer, host=host)

    async def _serve_connection(
        self, stream: trio.SocketStream | trio.SSLStream[trio.SocketStream], *, scheme: str, peer: str, host: str
    ) -> None:
        connection = HttpConnection(
            stream,
            app=self._app,
            limits=self._options.limits,
            scheme=scheme,
            peer=peer,
            stopping=lambda: self.stopping,
            idle=lambda connection, is_idle: self._note_idle(connection, host, is_idle=is_idle),
        )
        self._connections.add(connection)
        try:
            await connection.serve()
        except Exception:  # noqa: BLE001 - one connection's trouble, a bug of ours included, is not the others'
            _log.exception("http.connection_failed", peer=peer)
        finally:
            self._connections.discard(connection)
            if not self._connections:
                self._empty.set()


@asynccontextmanager
async def open_http_server(app: App, *, address: str, options: HttpOptions) -> AsyncIterator[HttpServer]:
    """Serves for the block; the address is bound when it begins. Leaving the block cuts off what is left.

    Raises:
        OSError: the address cannot be listened on.
    """
    host, port = split_address(address)
    listeners = await trio.open_tcp_listeners(port, host=host, backlog=_BACKLOG)
    server = HttpServer(app, options)
    server.address = join_address(host, listeners[0].socket.getsockname()[1])
    async with trio.open_nursery() as connections:
        await connections.start(server.serve, listeners, connections)
        yield server
        connections.cancel_scope.cancel(reason="the server is closed")


async def _turn_away(stream: trio.SocketStream, *, plain: bool) -> None:
    with trio.move_on_after(_TURN_AWAY):
        try:
            if plain:
                await stream.send_all(_TURNED_AWAY)
                await stream.send_eof()
                # A close over unread bytes is a reset, which may overtake the answer.
                await stream.receive_some(65_536)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
    await trio.aclose_forcefully(stream)


def _peer(stream: trio.SocketStream) -> str:
    try:
        return join_address(*stream.socket.getpeername()[:2])
    except OSError:
        return "?"  # it has gone already
