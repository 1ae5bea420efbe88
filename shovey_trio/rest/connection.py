"""One HTTP connection: h11 between a trio stream and a handler.

The rules of this file:

* Everything a client can make us wait for has a deadline: the head, each piece of the body, each piece of the response
  it does not read, and the time between requests. A client that is too slow in the head or body is told so (408); one
  that does not read is cut off.
* What is too large is refused before it is read: the head by h11's limit (431), a body by its Content-Length or as soon
  as it passes the limit (413). After a refusal the rest of what the client sends is thrown away for a moment, because a
  close with unread bytes would be a reset, and the client would not see why.
* A handler sends one response. If it fails before that, the client gets an error; if it fails in the middle of one, the
  connection is cut, so that a truncated body never looks like a whole one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import h11
import structlog
import trio

from shovey_trio.core.errors import ShoveyError
from shovey_trio.rest.messages import HttpRefused, Reply, Request, Response, error_response

_log = structlog.get_logger(__name__)

Handler = Callable[[Request, Reply], Awaitable[None]]

_READ: Final = 65_536
# What a refused client may still send, and for how long, before the connection is closed over it.
_LINGER_BYTES: Final = 4 * 2**20
_LINGER: Final = 2.0
_CLOSE: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """Bounds of a connection; durations in seconds.

    Attributes:
        head_bytes: request line and headers together, about one more read on top.
        headers: how many.
        body_bytes: a body that is read whole; a body that is passed on piece by piece has no limit.
        head_time: from a request's first byte to the end of its head.
        idle_time: between requests, and before the first.
        read_time: without a byte of a body that is expected.
        body_time: for a body that is read whole.
        write_time: without progress of a response.
    """

    head_bytes: int = 32 * 1024
    headers: int = 100
    body_bytes: int = 1_000_000
    head_time: float = 10.0
    idle_time: float = 30.0
    read_time: float = 20.0
    body_time: float = 60.0
    write_time: float = 30.0


class _Cut(Exception):
    """The connection is of no use any more: the client is gone, or does not read."""


class HttpConnection:
    """A connection; ``serve`` handles its requests one after another until it ends."""

    def __init__(
        self,
        stream: trio.abc.HalfCloseableStream | trio.SSLStream[trio.SocketStream],
        *,
        handler: Handler,
        limits: HttpLimits,
        scheme: str,
        peer: str,
        stopping: Callable[[], bool],
    ) -> None:
        self._stream = stream
        self._handler = handler
        self.limits = limits
        self._scheme = scheme
        self._peer = peer
        self.stopping = stopping
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.head_bytes)
        self._waiting: trio.CancelScope | None = None
        self._linger = False

    def release_idle(self) -> None:
        """Ends the connection if it is between requests."""
        if self._waiting is not None:
            self._waiting.cancel(reason="the server stops")

    async def serve(self) -> None:
        """Returns when the connection is over; never raises for what a client does. Cancelling it cuts it off."""
        try:
            while await self._serve_request():
                self._http.start_next_cycle()
        except _Cut:
            pass
        finally:
            with trio.CancelScope(deadline=trio.current_time() + _CLOSE + _LINGER, shield=True):
                await self._close()

    async def _serve_request(self) -> bool:
        """Handles one request; whether another may follow."""
        reply = _Reply(self)
        try:
            head = await self._next_head()
        except HttpRefused as error:
            await self._refuse(reply, error)
            return False
        if head is None:
            return False
        headers: dict[str, str] = {}
        for name, value in head.headers:
            key, text = name.decode("latin-1"), value.decode("latin-1")
            headers[key] = f"{headers[key]}, {text}" if key in headers else text
        body = _RequestBody(self)
        request = Request(
            method=head.method.decode("ascii"),
            target=head.target.decode("ascii"),
            headers=headers,
            scheme=self._scheme,
            peer=self._peer,
            body=body,
        )
        reply.close_after = self.stopping()
        try:
            if len(head.headers) > self.limits.headers:
                raise HttpRefused(HttpRefused.HEADERS_TOO_LARGE, f"more than {self.limits.headers} headers")
            await self._handler(request, reply)
        except HttpRefused as error:
            await self._refuse(reply, error)
            return False
        except h11.RemoteProtocolError as error:
            await self._refuse(reply, HttpRefused(error.error_status_hint, str(error)))
            return False
        await reply.finish()
        if not body.ended:
            # The handler answered without the body; what is left of it is not worth reading.
            self._linger = True
            return False
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    async def _next_head(self) -> h11.Request | None:
        """The next request's head; None when the client has gone, or stays silent."""
        if self._http.trailing_data == (b"", False):
            with trio.move_on_after(self.limits.idle_time) as self._waiting:
                if self.stopping():
                    return None
                await self._receive()
            waited, self._waiting = self._waiting, None
            if waited.cancelled_caught:
                return None
        try:
            with trio.fail_after(self.limits.head_time):
                event = await self._next_event()
        except trio.TooSlowError:
            raise HttpRefused(HttpRefused.TIMED_OUT, "the request's head took too long") from None
        except h11.RemoteProtocolError as error:
            message = "the request's head is too large" if error.error_status_hint == 431 else str(error)  # noqa: PLR2004
            raise HttpRefused(error.error_status_hint, message) from None
        return event if isinstance(event, h11.Request) else None

    async def next_body_event(self) -> h11.Data | h11.EndOfMessage:
        """The next piece of the body.

        Raises:
            HttpRefused: it does not come (408), or is no HTTP.
        """
        if self._http.they_are_waiting_for_100_continue:
            await self.send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))
        try:
            with trio.fail_after(self.limits.read_time):
                event = await self._next_event()
        except trio.TooSlowError:
            raise HttpRefused(HttpRefused.TIMED_OUT, "the request's body took too long") from None
        if isinstance(event, (h11.Data, h11.EndOfMessage)):
            return event
        raise _Cut

    async def send(self, event: h11.Event) -> None:
        """Sends an event.

        Raises:
            _Cut: the client is gone or does not read.
        """
        data = self._http.send(event)
        if not data:
            return
        try:
            with trio.fail_after(self.limits.write_time):
                await self._stream.send_all(data)
        except (trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise _Cut from error

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Cancels its block when the client hangs up; what the client sends meanwhile is kept for the next request."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, nursery.cancel_scope)
            yield
            nursery.cancel_scope.cancel(reason="the wait is over")

    async def _watch(self, block: trio.CancelScope) -> None:
        received = 0
        while received < self.limits.head_bytes:
            try:
                data = await self._stream.receive_some(_READ)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            self._http.receive_data(data)
            if not data:
                block.cancel(reason="the client hung up")
                return
            received += len(data)

    async def _next_event(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            await self._receive()
        return event

    async def _receive(self) -> None:
        try:
            data = await self._stream.receive_some(_READ)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise _Cut from error
        self._http.receive_data(data)

    async def _refuse(self, reply: _Reply, error: HttpRefused) -> None:
        self._linger = True
        _log.info("http.refused", peer=self._peer, status=error.status, error=error.message)
        if reply.begun or self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            raise _Cut from error
        reply.close_after = True
        await reply.send(error_response(error.status, error.message, error.headers))
        await reply.finish()

    async def _close(self) -> None:
        try:
            if self._linger:
                await self._throw_away_the_rest()
            await self._stream.aclose()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def _throw_away_the_rest(self) -> None:
        if isinstance(self._stream, trio.SocketStream):
            await self._stream.send_eof()
        with trio.move_on_after(_LINGER):
            received = 0
            while received < _LINGER_BYTES and (data := await self._stream.receive_some(_READ)):
                received += len(data)


class _RequestBody:
    """``messages.Body`` of the request that a connection is at."""

    def __init__(self, connection: HttpConnection) -> None:
        self._connection = connection
        self.ended = False

    async def read(self, limit: int) -> bytes:
        collected = bytearray()
        try:
            with trio.fail_after(self._connection.limits.body_time):
                async for piece in self.chunks():
                    collected += piece
                    if len(collected) > limit:
                        raise HttpRefused(HttpRefused.TOO_LARGE, f"the body is larger than {limit} bytes")
        except trio.TooSlowError:
            raise HttpRefused(HttpRefused.TIMED_OUT, "the request's body took too long") from None
        return bytes(collected)

    async def chunks(self) -> AsyncIterator[bytes]:
        while not self.ended:
            match await self._connection.next_body_event():
                case h11.Data(data=data):
                    yield bytes(data)
                case _:
                    self.ended = True


class _Reply:
    """``messages.Reply`` of the request that a connection is at."""

    def __init__(self, connection: HttpConnection) -> None:
        self._connection = connection
        self.begun = False
        self.close_after = False

    @property
    def draining(self) -> bool:
        return self._connection.stopping()

    async def send(self, response: Response) -> None:
        headers = {"Content-Type": response.content_type} if response.body else {}
        length = {"Content-Length": str(len(response.body))}
        await self.begin(response.status, headers | dict(response.headers) | length)
        await self.write(response.body)

    async def begin(self, status: int, headers: Mapping[str, str]) -> None:
        if self.begun:
            raise RuntimeError("a handler sends one response")
        self.begun = True
        fields = [*headers.items(), *([("Connection", "close")] if self.close_after else [])]
        await self._connection.send(h11.Response(status_code=status, headers=fields))

    async def write(self, data: bytes) -> None:
        if data:
            await self._connection.send(h11.Data(data=data))

    async def finish(self) -> None:
        """Ends the response; a handler that sent none is a bug of ours and answered as one."""
        if not self.begun:
            await self.send(error_response(500, "nothing was answered"))
        await self._connection.send(h11.EndOfMessage())

    @asynccontextmanager
    async def gone(self) -> AsyncIterator[None]:
        async with self._connection.watched():
            yield


async def answer_error(reply: Reply, error: ShoveyError, headers: Mapping[str, str]) -> None:
    """Answers an error of the program in the form that clients know."""
    retry = {"Retry-After": error.details["retry_after_s"]} if "retry_after_s" in error.details else {}
    await reply.send(error_response(error.http, error.message, {**headers, **retry}))
