"""What a server asks of the engine under it."""

from __future__ import annotations

from typing import Protocol

import trio

from shovey_trio.rpc.bridge.listener import Listener, ServerOptions
from shovey_trio.rpc.bridge.tls import ReloadableServerTls


class Engine(Protocol):
    """Listeners of one server; the calls that come in are handed to a ``CallHost``.

    Valid in the ``async with`` block of the function that opened it; leaving the block gives back what was bound and
    never started.
    """

    def bind(self, listener: Listener, options: ServerOptions, tls: ReloadableServerTls | None) -> int:
        """Bind a listener and return its port.

        Raises:
            ListenError: the address cannot be listened on.
            ValueError: two routes for one method.
        """

    async def start(self, nursery: trio.Nursery) -> None:
        """Accept connections and calls on what was bound; what the engine needs for that becomes tasks of ``nursery``.

        Those tasks are shielded. Only ``aclose`` ends them.
        """

    def refuse(self) -> None:
        """Refuse new calls from now on; connections close when their last call has ended. Harmless if repeated."""

    async def wait_closed(self) -> None:
        """Return when all calls have ended and all connections are closed, after ``refuse``. One waiter at a time."""

    async def drop(self) -> None:
        """Drop connections that are still open, after ``refuse``; for clients that neither read nor close."""

    async def aclose(self) -> None:
        """End the engine's own tasks, after ``wait_closed`` or ``drop``."""
