"""A TCP relay in user space that misbehaves on request: the network between agents and controller, for tests.

It sees bytes only (TLS goes through it), so what it can do is what a network does: refuse, cut, be silent, be slow,
or let one direction through and not the other.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import Enum

import trio

# What one read takes; each connection holds at most one in each direction, so that backpressure is the network's own.
_BLOCK = 64 * 1024
_ACCEPT_BACKLOG = 128


class Weather(Enum):
    """How the network behaves.

    Attributes:
        FAIR: everything passes.
        CUT: connections are reset, new ones are closed at once.
        SILENT: nothing passes and nothing is closed, as behind a firewall that drops packets.
        DEAF: what goes to the target passes, nothing comes back (half-open).
        MUTE: what comes from the target passes, nothing goes to it (half-open).
    """

    FAIR = "fair"
    CUT = "cut"
    SILENT = "silent"
    DEAF = "deaf"
    MUTE = "mute"


_BLOCKS_UP = frozenset({Weather.SILENT, Weather.MUTE})
_BLOCKS_DOWN = frozenset({Weather.SILENT, Weather.DEAF})


class Relay:
    """A relay that ``open_relay`` has started.

    Attributes:
        port: where it listens, on 127.0.0.1.
        target: port on 127.0.0.1 that it connects to; may be set later than the first connection.
        delay: seconds that each block waits before it is passed on.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.target = 0
        self.delay = 0.0
        self._weather = Weather.FAIR
        self._changed = trio.Event()
        self._connections: set[trio.CancelScope] = set()

    @property
    def weather(self) -> Weather:
        return self._weather

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    def set_weather(self, weather: Weather) -> None:
        """Changes how the network behaves, at once and for connections that are open too."""
        self._weather = weather
        self._changed.set()
        self._changed = trio.Event()
        if weather is Weather.CUT:
            for scope in self._connections:
                scope.cancel(reason="the relay cuts")

    async def serve_connection(self, near: trio.SocketStream) -> None:
        """Relays one connection to its end."""
        if self._weather is Weather.CUT:
            await near.aclose()
            return
        try:
            far = await trio.open_tcp_stream("127.0.0.1", self.target)
        except OSError:
            await near.aclose()
            return
        with trio.CancelScope() as scope:
            self._connections.add(scope)
            try:
                async with near, far, trio.open_nursery() as nursery:
                    nursery.start_soon(self._carry, near, far, _BLOCKS_UP, nursery.cancel_scope)
                    nursery.start_soon(self._carry, far, near, _BLOCKS_DOWN, nursery.cancel_scope)
            finally:
                self._connections.discard(scope)

    async def _carry(
        self, source: trio.SocketStream, sink: trio.SocketStream, blocked: frozenset[Weather], both: trio.CancelScope
    ) -> None:
        try:
            while True:
                data = await source.receive_some(_BLOCK)
                while self._weather in blocked:
                    await self._changed.wait()
                if self.delay:
                    await trio.sleep(self.delay)
                if not data:
                    break
                await sink.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        both.cancel(reason="one side has ended")


@asynccontextmanager
async def open_relay(target: int = 0) -> AsyncIterator[Relay]:
    """A relay for the block; its connections are closed at the end.

    Args:
        target: port on 127.0.0.1; 0 when it is set on the relay later.
    """
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=_ACCEPT_BACKLOG)
        relay = Relay(listeners[0].socket.getsockname()[1])
        relay.target = target

        await nursery.start(trio.serve_listeners, relay.serve_connection, listeners)
        yield relay
        nursery.cancel_scope.cancel(reason="the relay closes")
