"""What a server runs on: grpcio's completion queue. The C core's events go straight to trio tasks, without asyncio.

All listeners share one queue, and with it one thread and one task (``_completions``). Each is a server of the C core,
because a call does not say which port it came in on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import trio
from grpc._cython import cygrpc

from shovey_trio.rpc.bridge._call import CoreServerCall, refuse_unknown
from shovey_trio.rpc.bridge._completions import Completions
from shovey_trio.rpc.bridge._server_call import GOING_AWAY, CallHost
from shovey_trio.rpc.bridge.calls import Served
from shovey_trio.rpc.bridge.listener import Listener, ServerOptions
from shovey_trio.rpc.bridge.status import ListenError
from shovey_trio.rpc.bridge.tls import ReloadableServerTls

# Calls of one method that the C core may hand over without being asked again; further ones wait inside it.
_AHEAD: Final = 16


class Engine:
    """Listeners of one server; the calls that come in are handed to a ``CallHost``. Made by ``open_engine``.

    Valid in the block of ``open_engine``; leaving it gives back what was bound and never started.
    """

    def __init__(self, host: CallHost) -> None:
        self._host = host
        self._completions = Completions()
        self._bound: list[_Server] = []
        self._started: list[_Server] = []
        self._refusing = False

    def bind(self, listener: Listener, options: ServerOptions, tls: ReloadableServerTls | None) -> int:
        """Bind a listener and return its port.

        Raises:
            ListenError: the address cannot be listened on.
            ValueError: two handlers for one method.
        """
        server = _Server(self._completions, self._host, listener.by_path(), options)
        self._bound.append(server)
        port = server.bind(listener.address, tls)
        if port == 0:
            raise ListenError(f"cannot listen on {listener.address} ({listener.name})")
        return port

    async def start(self, nursery: trio.Nursery) -> None:
        """Accept connections and calls on what was bound; the engine's own task is shielded, and ``aclose`` ends it."""
        nursery.start_soon(self._completions.serve, name="completions of grpc's C core")
        while self._bound:
            server = self._bound.pop(0)
            server.start()
            self._started.append(server)
        await trio.lowlevel.checkpoint()

    def refuse(self) -> None:
        """Refuse new calls from now on; connections close when their last call has ended. Harmless if repeated."""
        if not self._refusing:
            self._refusing = True
            for server in self._started:
                server.refuse()

    async def wait_closed(self) -> None:
        """Return when all calls have ended and all connections are closed, after ``refuse``. One waiter at a time."""
        for server in self._started:
            server.cut_waiting()
        for server in self._started:
            await server.closed.wait()

    async def drop(self) -> None:
        """Drop connections that are still open, after ``refuse``; for clients that neither read nor close."""
        for server in self._started:
            server.drop()
        for server in self._started:
            await server.closed.wait()

    async def aclose(self) -> None:
        """End the engine's own task, after ``wait_closed`` or ``drop``."""
        await self._completions.aclose()

    def give_back(self) -> None:
        """Give back the ports of servers that were never started."""
        for server in self._bound:
            server.give_back()


@asynccontextmanager
async def open_engine(host: CallHost) -> AsyncIterator[Engine]:
    """Hold an engine with its completion queue for the block."""
    engine = Engine(host)
    try:
        yield engine
    finally:
        engine.give_back()


class _Server:
    """One listener."""

    def __init__(
        self, completions: Completions, host: CallHost, serves: Mapping[str, Served], options: ServerOptions
    ) -> None:
        self.completions = completions
        self._queue = completions.queue
        self._host = host
        self._serves = serves
        self._server = cygrpc.Server(options.arguments(), False)
        self._server.register_completion_queue(self._queue)
        # Methods that the C core knows have a queue of calls each: none waits behind another's.
        for path in serves:
            self._server.register_method(path)
        # At most what clients may have open; each entry is dropped when its request comes or its client goes.
        self._waiting: set[CoreServerCall] = set()
        self._refusing = False
        self.closed = trio.Event()

    def bind(self, address: str, tls: ReloadableServerTls | None) -> int:
        if tls is None:
            return int(self._server.add_http2_port(address.encode()))
        return int(self._server.add_http2_port(address.encode(), tls.credentials()._credentials))

    def start(self) -> None:
        self._server.start()
        self._ask_for_unknown()
        for served in self._serves.values():
            for _ in range(served.opening or _AHEAD):
                self._ask_for(served)

    def give_back(self) -> None:
        """Free a server that was never started; the C core gives its port back only in the end of one that was."""
        self._server.start()
        self._server.destroy()  # does not wait for anybody: there is no connection

    def refuse(self) -> None:
        self._refusing = True
        self._server.shutdown(self._queue, self._on_shutdown)

    def cut_waiting(self) -> None:
        """End the calls that have no handler yet, as those that have one were."""
        for call in self._waiting:
            call.refuse(GOING_AWAY)
        self._waiting.clear()

    def drop(self) -> None:
        if not self.closed.is_set():
            self._server.cancel_all_calls()

    def wait_for_request(self, call: CoreServerCall) -> None:
        self._waiting.add(call)

    def request_came(self, call: CoreServerCall) -> None:
        self._waiting.discard(call)

    def opened(self, served: Served) -> None:
        if served.opening is not None:
            self._ask_for(served)

    def _ask_for(self, served: Served) -> None:
        if not self._refusing:
            self._server.request_registered_call(
                self._queue, self._queue, served.method.path, partial(self._on_call, served)
            )

    def _on_call(self, served: Served, event: Any) -> None:
        if event.success and not self.completions.closing:  # else the server has been shut down
            if served.opening is None:
                self._ask_for(served)
            CoreServerCall(self._host, served, event, self).open()

    def _ask_for_unknown(self) -> None:
        if not self._refusing:
            self._server.request_call(self._queue, self._queue, self._on_unknown)

    def _on_unknown(self, event: Any) -> None:
        if event.success and not self.completions.closing:
            self._ask_for_unknown()
            refuse_unknown(event.call)

    def _on_shutdown(self, _: Any) -> None:
        self._server.destroy()
        self.closed.set()
