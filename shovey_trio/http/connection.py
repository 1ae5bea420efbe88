"""One HTTP connection: HTTP between a trio stream and an ASGI application.

The rules of this file:

* Ordinary requests are read by ``plain_head``. From the first that is not ordinary on, the connection is h11's.

* Everything a client can make us wait for has a deadline: the head, each piece of the body, each piece of the response
  it does not read, and the time between requests. A client that is too slow in the head or body is told so (408); one
  that does not read is cut off.
* What is too large is refused before it is read: the head by h11's limit (431), a body by its Content-Length or as soon
  as it passes the limit (413). After a refusal the rest of what the client sends is thrown away for a moment, because a
  close with unread bytes would be a reset, and the client would not see why.
* An application sends one response. If it fails before that, the client gets an error; if it fails in the middle of
  one, the connection is cut, so that a truncated body never looks like a whole one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

import h11
import structlog
import trio

from shovey_trio.http.asgi import App, Exchange
from shovey_trio.http.bodies import Body, H11Body, PlainBody
from shovey_trio.http.framing import H11Framing, PlainFraming
from shovey_trio.http.messages import JSON, HttpRefused, error_bytes
from shovey_trio.http.plain_head import read_plain_head
from shovey_trio.http.replies import ConnectionCut, Reply
from shovey_trio.http.transport import Transport

_log = structlog.get_logger(__name__)

# What a refused client may still send, and for how long, before the connection is closed over it.
_LINGER_BYTES: Final = 4 * 2**20
_LINGER: Final = 2.0
_CLOSE: Final = 1.0
_HEAD_TOO_LARGE: Final = "the request's head is too large"
_BODY_TOO_SLOW: Final = "the request's body took too long"


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """Bounds of a connection; durations in seconds.

    Attributes:
        head_bytes: request line and headers together, about one more read on top.
        headers: how many.
        head_time: from a request's first byte to the end of its head.
        idle_time: between requests, and before the first.
        read_time: without a byte of a body that is expected.
        write_time: without progress of a response.
    """

    head_bytes: int = 32 * 1024
    headers: int = 100
    head_time: float = 10.0
    idle_time: float = 30.0
    read_time: float = 20.0
    write_time: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    """A request's head, and its body on its way.

    Attributes:
        target: as on the wire, query included.
        headers: by lower-case name; what was repeated is joined by ``, ``.
    """

    method: str
    target: str
    headers: Mapping[bytes, bytes]
    body: Body


class HttpConnection:
    """A connection; ``serve`` handles its requests one after another until it ends."""

    def __init__(
        self,
        stream: trio.SocketStream | trio.SSLStream[trio.SocketStream],
        *,
        app: App,
        limits: HttpLimits,
        scheme: str,
        peer: str,
        stopping: Callable[[], bool],
        idle: Callable[[HttpConnection, bool], None] = lambda _connection, _is_idle: None,
    ) -> None:
        self._transport = Transport(stream)
        self._app = app
        self.limits = limits
        self._scheme = scheme
        self._peer = peer
        self.stopping = stopping
        # Told at the beginning and the end of each wait for a further request.
        self._idle = idle
        self._served = False
        # What came and was not looked at yet, as long as there is no h11.
        self._received = bytearray()
        self._http: h11.Connection | None = None
        self._waiting: trio.CancelScope | None = None
        self._linger = False
        self._hung_up = False

    def release_idle(self, *, reason: str) -> None:
        """Ends the connection if it is between requests; a handler that holds its answer back gives it now."""
        if self._waiting is not None:
            self._waiting.cancel(reason=reason)

    async def serve(self) -> None:
        """Returns when the connection is over; never raises for what a client does. Cancelling it cuts it off."""
        try:
            while await self._serve_request():
                if self._http is not None:
                    self._http.start_next_cycle()
        except ConnectionCut:
            pass
        finally:
            with trio.CancelScope(deadline=trio.current_time() + _CLOSE + _LINGER, shield=True):
                await self._close()

    async def _serve_request(self) -> bool:
        """Handles one request; whether another may follow."""
        try:
            head = await self._next_head()
        except HttpRefused as error:
            await self._refuse(self._reply("GET"), error)
            return False
        if head is None:
            return False
        reply = self._reply(head.method)
        exchange = Exchange(
            method=head.method,
            target=head.target,
            headers=head.headers,
            scheme=self._scheme,
            peer=self._peer,
            body=head.body,
            reply=reply,
            wait_while_connected=self.wait_while_connected,
        )
        try:
            await self._app(exchange.scope, exchange.receive, exchange.send)
        except HttpRefused as error:
            await self._refuse(reply, error)
            return False
        except h11.RemoteProtocolError as error:
            await self._refuse(reply, HttpRefused(error.error_status_hint, str(error)))
            return False
        except ConnectionCut:
            raise
        except Exception:  # noqa: BLE001 - a bug in one request is that request's
            path = head.target.partition("?")[0]
            _log.exception("http.handler_failed", peer=self._peer, method=head.method, path=path)
            await self._refuse(reply, HttpRefused(500, "internal error"))
            return False
        if not reply.finished:
            _log.error("http.not_answered", peer=self._peer, method=head.method, path=head.target.partition("?")[0])
            await self._refuse(reply, HttpRefused(500, "nothing was answered"))
            return False
        self._served = True
        if not head.body.is_over():
            # The application answered without the body; what is left of it is not worth reading.
            self._linger = True
            return False
        if self._http is None:
            return not reply.close_after
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    def _reply(self, method: str) -> Reply:
        bodiless = method == "HEAD"
        framing = PlainFraming(bodiless=bodiless) if self._http is None else H11Framing(self._http, bodiless=bodiless)
        return Reply(framing, self.send_bytes, close_after=self.stopping())

    async def _next_head(self) -> _Head | None:
        """The next request with its body; None when the client has gone, or stays silent."""
        if not (self._received if self._http is None else self._http.trailing_data != (b"", False)):
            with trio.move_on_after(self.limits.idle_time) as self._waiting:
                if self.stopping():
                    return None
                self._idle(self, self._served)
                try:
                    await self._receive()
                finally:
                    self._idle(self, False)
            waited, self._waiting = self._waiting, None
            if waited.cancelled_caught:
                return None
        else:
            # What has come already is not waited for: whoever sends many requests at once must not keep others out.
            await trio.lowlevel.checkpoint()
        if self._http is None and (found := self._plain_request()):
            return found
        try:
            with trio.fail_after(self.limits.head_time):
                while self._http is None:
                    # A head that has come in part: it may still be an ordinary one.
                    await self._receive()
                    if found := self._plain_request():
                        return found
                event = await self._next_event(self._http)
        except trio.TooSlowError:
            raise HttpRefused(HttpRefused.TIMED_OUT, "the request's head took too long") from None
        except h11.RemoteProtocolError as error:
            too_large = error.error_status_hint == HttpRefused.HEADERS_TOO_LARGE
            raise HttpRefused(error.error_status_hint, _HEAD_TOO_LARGE if too_large else str(error)) from None
        return self._h11_request(event) if isinstance(event, h11.Request) else None

    def _plain_request(self) -> _Head | None:
        """The request whose head has come whole, if it is ordinary. None: more has to come, or h11 was called in."""
        end = self._received.find(b"\r\n\r\n")
        if end < 0 and not self._hung_up and len(self._received) <= self.limits.head_bytes:
            return None
        head = None
        if 0 <= end <= self.limits.head_bytes:
            head = read_plain_head(bytes(self._received[:end]), headers_limit=self.limits.headers)
        if head is None:
            self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=self.limits.head_bytes)
            received, self._received = bytes(self._received), bytearray()
            if received:
                self._http.receive_data(received)
            if self._hung_up:
                self._http.receive_data(b"")
            return None
        del self._received[: end + 4]
        body = PlainBody(self, length=head.length)
        return _Head(method=head.method, target=head.target, headers=head.headers, body=body)

    def _h11_request(self, event: h11.Request) -> _Head:
        size = len(event.target) + sum(len(name) + len(value) + 4 for name, value in event.headers)
        if size > self.limits.head_bytes:
            raise HttpRefused(HttpRefused.HEADERS_TOO_LARGE, _HEAD_TOO_LARGE)
        if len(event.headers) > self.limits.headers:
            raise HttpRefused(HttpRefused.HEADERS_TOO_LARGE, f"the request has more than {self.limits.headers} headers")
        headers: dict[bytes, bytes] = {}
        for name, value in event.headers:
            headers[name] = b"%b, %b" % (headers[name], value) if name in headers else value
        if b"content-length" in headers and b"transfer-encoding" in headers:
            # RFC 9112 section 6.1: two framings are what request smuggling is made of.
            raise HttpRefused(400, "a request has a Content-Length or a Transfer-Encoding, not both")
        return _Head(
            method=event.method.decode("ascii"),
            target=event.target.decode("ascii"),
            headers=headers,
            body=H11Body(self),
        )

    async def next_plain_piece(self, most: int) -> bytes:
        """The next bytes of an ordinary request's body, at most so many.

        Raises:
            HttpRefused: they do not come (408).
        """
        if not self._received:
            try:
                with trio.fail_after(self.limits.read_time):
                    await self._receive()
            except trio.TooSlowError:
                raise HttpRefused(HttpRefused.TIMED_OUT, _BODY_TOO_SLOW) from None
            if self._hung_up:
                raise ConnectionCut
        piece = bytes(self._received[:most])
        del self._received[:most]
        return piece

    def is_at_end(self) -> bool:
        """Whether h11's request has no more body, as far as it has come."""
        assert self._http is not None
        return isinstance(self._http.next_event(), h11.EndOfMessage)

    async def next_body_event(self) -> h11.Data | h11.EndOfMessage:
        """The next piece of the body.

        Raises:
            HttpRefused: it does not come (408), or is no HTTP.
        """
        assert self._http is not None
        if self._http.they_are_waiting_for_100_continue:
            go_on = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
            await self.send_bytes(self._http.send(go_on) or b"")
        try:
            with trio.fail_after(self.limits.read_time):
                event = await self._next_event(self._http)
        except trio.TooSlowError:
            raise HttpRefused(HttpRefused.TIMED_OUT, _BODY_TOO_SLOW) from None
        if isinstance(event, (h11.Data, h11.EndOfMessage)):
            return event
        raise ConnectionCut

    async def send_bytes(self, data: bytes) -> None:
        """Sends a piece of a response as it is.

        Raises:
            ConnectionCut: the client is gone or does not read.
        """
        try:
            sent = self._transport.send_nowait(data)
            if sent < len(data):
                with trio.fail_after(self.limits.write_time):
                    await self._transport.send_all(data[sent:])
        except (trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionCut from error

    async def wait_while_connected(self, wait: Callable[[], Awaitable[None]]) -> None:
        """Waits, but not for a client that has hung up, and not when the server stops.

        What the client sends meanwhile is kept for the next request.

        Raises:
            ConnectionCut: it hung up first.
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
            raise ConnectionCut

    async def _watch(self, block: trio.CancelScope) -> None:
        received = 0
        while received < self.limits.head_bytes:
            try:
                data = await self._transport.receive()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            self._take(data)
            if not data:
                block.cancel(reason="the client hung up")
                return
            received += len(data)

    async def _next_event(self, http: h11.Connection) -> object:
        while (event := http.next_event()) is h11.NEED_DATA:
            await self._receive()
        return event

    async def _receive(self) -> None:
        try:
            data = await self._transport.receive()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionCut from error
        self._take(data)

    def _take(self, data: bytes) -> None:
        if not data:
            self._hung_up = True
        if self._http is None:
            self._received += data
        else:
            self._http.receive_data(data)

    async def _refuse(self, reply: Reply, error: HttpRefused) -> None:
        self._linger = True
        _log.info("http.refused", peer=self._peer, status=error.status, error=error.message)
        if reply.begun or (self._http is not None and self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE)):
            raise ConnectionCut from error
        reply.close_after = True
        fields = {"Content-Type": JSON, **error.headers}
        await reply.begin(error.status, fields, error_bytes(error.message), whole=True)

    async def _close(self) -> None:
        try:
            if self._linger:
                await self._throw_away_the_rest()
            await self._transport.aclose()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def _throw_away_the_rest(self) -> None:
        await self._transport.send_eof()
        with trio.move_on_after(_LINGER):
            received = 0
            while received < _LINGER_BYTES and (data := await self._transport.receive()):
                received += len(data)
