"""One connection's bytes. On a plain socket, reading and writing cost a system call each and no turn of the loop.

trio's own streams take a turn of the loop for every operation, so that a task which never waits lets others run. A
connection waits for its client between any two requests, and that is where others run here.
"""

from __future__ import annotations

import socket

import trio

_READ = 32_768


class Transport:
    """A stream that has just been accepted, TLS or plain; it belongs to this object from here on."""

    def __init__(self, stream: trio.SocketStream | trio.SSLStream[trio.SocketStream]) -> None:
        self._socket: socket.socket | None = None
        if isinstance(stream, trio.SocketStream):
            self._socket = socket.socket(fileno=stream.socket.detach())
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(self._socket))
        self._stream = stream

    async def receive(self) -> bytes:
        """What has come, waiting for it; empty at the end.

        Raises:
            BrokenResourceError, ClosedResourceError: the connection is broken.
        """
        if self._socket is None:
            return bytes(await self._stream.receive_some(_READ))
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                return self._socket.recv(_READ)
            except BlockingIOError:
                continue
            except OSError as error:
                raise trio.BrokenResourceError from error

    def send_nowait(self, data: bytes) -> int:
        """Sends as much as goes at once, and returns how much that was.

        Raises:
            BrokenResourceError: the connection is broken.
        """
        if self._socket is None:
            return 0
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise trio.BrokenResourceError from error

    async def send_all(self, data: bytes) -> None:
        """Sends everything.

        Raises:
            BrokenResourceError, ClosedResourceError: the connection is broken.
        """
        await self._stream.send_all(data)

    async def send_eof(self) -> None:
        """Says that nothing more comes, where that can be said alone: not under TLS."""
        if isinstance(self._stream, trio.SocketStream):
            await self._stream.send_eof()

    async def aclose(self) -> None:
        """Closes it; under TLS, in order."""
        await self._stream.aclose()
