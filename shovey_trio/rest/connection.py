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

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
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
_REASONS: Final = {status.value: status.phrase.encode() for status in HTTPStatus}
_HEAD_TOO_LARGE: Final = "the request's head is too large"


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """Bounds of a connection; durations in seconds.

    Attributes:
        head_bytes: request line and headers together, about one more read on top.
        headers: how many.
        head_time: from a request's first byte to the end of its head.
        idle_time: between requests, and before the first.
        read_time: without a byte of a body that is expected.
        body_time: for a body that is read whole.
        write_time: without progress of a response.
    """

    head_bytes: int = 32 * 1024
    headers: int = 100
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
        self._hung_up = False

    def release_idle(self) -> None:
        """Ends the connection if it is between requests; a handler that holds its answer back gives it now."""
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
        method = head.method.decode("ascii")
        body = _RequestBody(self, declared=int(headers.get("content-length", "0")))
        request = Request(
            method=method,
            target=head.target.decode("ascii"),
            headers=headers,
            scheme=self._scheme,
            peer=self._peer,
            body=body,
        )
        reply.bodiless = method == "HEAD"
        reply.close_after = self.stopping()
        try:
            await self._handler(request, reply)
        except HttpRefused as error:
            await self._refuse(reply, error)
            return False
        except h11.RemoteProtocolError as error:
            await self._refuse(reply, HttpRefused(error.error_status_hint, str(error)))
            return False
        except _Cut:
            raise
        except Exception:  # noqa: BLE001 - a bug in one request is that request's
            _log.exception("http.handler_failed", peer=self._peer, method=method, path=request.path)
            await self._refuse(reply, HttpRefused(500, "internal error"))
            return False
        await reply.finish()
        if not body.ended and not isinstance(self._http.next_event(), h11.EndOfMessage):
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
            too_large = error.error_status_hint == HttpRefused.HEADERS_TOO_LARGE
            raise HttpRefused(error.error_status_hint, _HEAD_TOO_LARGE if too_large else str(error)) from None
        if not isinstance(event, h11.Request):
            return None
        size = len(event.target) + sum(len(name) + len(value) + 4 for name, value in event.headers)
        if size > self.limits.head_bytes:
            raise HttpRefused(HttpRefused.HEADERS_TOO_LARGE, _HEAD_TOO_LARGE)
        if len(event.headers) > self.limits.headers:
            raise HttpRefused(HttpRefused.HEADERS_TOO_LARGE, f"the request has more than {self.limits.headers} headers")
        return event

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

    async def send(self, *events: h11.Event) -> None:
        """Sends events, as one piece.

        Raises:
            _Cut: the client is gone or does not read.
        """
        data = b"".join(self._http.send(event) or b"" for event in events)
        if not data:
            return
        try:
            with trio.fail_after(self.limits.write_time):
                await self._stream.send_all(data)
        except (trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise _Cut from error

    async def wait_while_connected(self, wait: Callable[[], Awaitable[None]]) -> None:
        """Waits, but not for a client that has hung up, and not when the server stops.

        What the client sends meanwhile is kept for the next request.

        Raises:
            _Cut: it hung up first.
            And whatever ``wait`` raises, not in a group.
        """
        if self.stopping():
            return
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            self._waiting = nursery.cancel_scope
            nursery.start_soon(self._watch, nursery.cancel_scope)
            try:
                await wait()
            except Exception as error:  # noqa: BLE001 - raised again below, outside the group
                failure = error
            nursery.cancel_scope.cancel(reason="the wait is over")
        self._waiting = None
        if failure is not None:
            raise failure
        if self._hung_up:
            raise _Cut

    async def _watch(self, block: trio.CancelScope) -> None:
        received = 0
        while received < self.limits.head_bytes:
            try:
                data = await self._stream.receive_some(_READ)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            self._http.receive_data(bytes(data))
            if not data:
                self._hung_up = True
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
        self._http.receive_data(bytes(data))

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

    def __init__(self, connection: HttpConnection, *, declared: int) -> None:
        self._connection = connection
        self._declared = declared
        self.ended = False

    async def read(self, limit: int) -> bytes:
        if self._declared > limit:
            raise HttpRefused(HttpRefused.TOO_LARGE, "Content-length too long!")
        collected = bytearray()
        try:
            with trio.fail_after(self._connection.limits.body_time):
                while piece := await self.receive():
                    collected += piece
                    if len(collected) > limit:
                        raise HttpRefused(HttpRefused.TOO_LARGE, f"the body is larger than {limit} bytes")
        except trio.TooSlowError:
            raise HttpRefused(HttpRefused.TIMED_OUT, "the request's body took too long") from None
        return bytes(collected)

    async def receive(self) -> bytes:
        while not self.ended:
            match await self._connection.next_body_event():
                case h11.Data(data=data) if data:
                    return bytes(data)
                case h11.EndOfMessage():
                    self.ended = True
        return b""


class _Reply:
    """``messages.Reply`` of the request that a connection is at."""

    def __init__(self, connection: HttpConnection) -> None:
        self._connection = connection
        self.begun = False
        self.bodiless = False
        self.close_after = False

    async def send(self, response: Response) -> None:
        headers = {"Content-Type": response.content_type} if response.body else {}
        head = self._head(response.status, {**headers, **response.headers, "Content-Length": str(len(response.body))})
        await self._connection.send(head, *([h11.Data(data=response.body)] if self._has_body(response.body) else []))

    async def begin(self, status: int, headers: Mapping[str, str]) -> None:
        await self._connection.send(self._head(status, headers))

    async def write(self, data: bytes) -> None:
        if self._has_body(data):
            await self._connection.send(h11.Data(data=data))

    async def finish(self) -> None:
        """Ends the response; a handler that sent none is a bug of ours and answered as one."""
        if not self.begun:
            await self.send(error_response(500, "nothing was answered"))
        await self._connection.send(h11.EndOfMessage())

    async def hold(self, wait: Callable[[], Awaitable[None]]) -> None:
        await self._connection.wait_while_connected(wait)

    def _head(self, status: int, headers: Mapping[str, str]) -> h11.Response:
        if self.begun:
            raise RuntimeError("a handler sends one response")
        self.begun = True
        fields = [("Date", formatdate(usegmt=True)), *headers.items()]
        if self.close_after:
            fields.append(("Connection", "close"))
        return h11.Response(status_code=status, headers=fields, reason=_REASONS.get(status, b""))

    def _has_body(self, data: bytes) -> bool:
        return bool(data) and not self.bodiless


async def answer_error(reply: Reply, error: ShoveyError, headers: Mapping[str, str]) -> None:
    """Answers an error of the program in the form that clients know."""
    retry = {"Retry-After": error.details["retry_after_s"]} if "retry_after_s" in error.details else {}
    await reply.send(error_response(error.http, error.message, {**headers, **retry}))
