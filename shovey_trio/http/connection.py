"""One HTTP connection: HTTP between a trio stream and a handler.

The rules of this file:

* Ordinary requests are read by ``plain_head``. From the first that is not ordinary on, the connection is h11's.

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
from typing import Final

import h11
import structlog
import trio

from shovey_trio.http.bodies import H11Body, PlainBody
from shovey_trio.http.messages import Body, HttpRefused, Reply, Request, error_response
from shovey_trio.http.plain_head import read_plain_head
from shovey_trio.http.replies import ConnectionCut, HttpReply
from shovey_trio.http.transport import Transport

_log = structlog.get_logger(__name__)

Handler = Callable[[Request, Reply], Awaitable[None]]

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


class HttpConnection:
    """A connection; ``serve`` handles its requests one after another until it ends."""

    def __init__(
        self,
        stream: trio.SocketStream | trio.SSLStream[trio.SocketStream],
        *,
        handler: Handler,
        limits: HttpLimits,
        scheme: str,
        peer: str,
        stopping: Callable[[], bool],
        idle: Callable[[HttpConnection, bool], None] = lambda _connection, _is_idle: None,
    ) -> None:
        self._transport = Transport(stream)
        self._handler = handler
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

    @property
    def is_plain(self) -> bool:
        """Whether h11 was not called in yet."""
        return self._http is None

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
        reply = HttpReply(self)
        try:
            head = await self._next_head()
        except HttpRefused as error:
            await self._refuse(reply, error)
            return False
        if head is None:
            return False
        request, body = head
        reply.bodiless = request.method == "HEAD"
        reply.close_after = self.stopping()
        try:
            await self._handler(request, reply)
        except HttpRefused as error:
            await self._refuse(reply, error)
            return False
        except h11.RemoteProtocolError as error:
            await self._refuse(reply, HttpRefused(error.error_status_hint, str(error)))
            return False
        except ConnectionCut:
            raise
        except Exception:  # noqa: BLE001 - a bug in one request is that request's
            _log.exception("http.handler_failed", peer=self._peer, method=request.method, path=request.path)
            await self._refuse(reply, HttpRefused(500, "internal error"))
            return False
        await reply.finish()
        self._served = True
        if not body.is_over():
            # The handler answered without the body; what is left of it is not worth reading.
            self._linger = True
            return False
        if self._http is None:
            return not reply.close_after
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    async def _next_head(self) -> tuple[Request, PlainBody | H11Body] | None:
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

    def _plain_request(self) -> tuple[Request, PlainBody] | None:
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
        return self._request(head.method, head.target, head.headers, body), body

    def _h11_request(self, event: h11.Request) -> tuple[Request, H11Body]:
        size = len(event.target) + sum(len(name) + len(value) + 4 for name, value in event.headers)
        if size > self.limits.head_bytes:
            raise HttpRefused(HttpRefused.HEADERS_TOO_LARGE, _HEAD_TOO_LARGE)
        if len(event.headers) > self.limits.headers:
            raise HttpRefused(HttpRefused.HEADERS_TOO_LARGE, f"the request has more than {self.limits.headers} headers")
        headers: dict[str, str] = {}
        for name, value in event.headers:
            key, text = name.decode("latin-1"), value.decode("latin-1")
            headers[key] = f"{headers[key]}, {text}" if key in headers else text
        body = H11Body(self, declared=int(headers.get("content-length", "0")))
        return self._request(event.method.decode("ascii"), event.target.decode("ascii"), headers, body), body

    def _request(self, method: str, target: str, headers: Mapping[str, str], body: Body) -> Request:
        return Request(method=method, target=target, headers=headers, scheme=self._scheme, peer=self._peer, body=body)

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

    def take_received(self, length: int) -> bytes | None:
        """So many bytes of what has come already; None when it is not that much."""
        if len(self._received) < length:
            return None
        taken = bytes(self._received[:length])
        del self._received[:length]
        return taken

    async def next_body_event(self) -> h11.Data | h11.EndOfMessage:
        """The next piece of the body.

        Raises:
            HttpRefused: it does not come (408), or is no HTTP.
        """
        assert self._http is not None
        if self._http.they_are_waiting_for_100_continue:
            await self.send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))
        try:
            with trio.fail_after(self.limits.read_time):
                event = await self._next_event(self._http)
        except trio.TooSlowError:
            raise HttpRefused(HttpRefused.TIMED_OUT, _BODY_TOO_SLOW) from None
        if isinstance(event, (h11.Data, h11.EndOfMessage)):
            return event
        raise ConnectionCut

    async def send(self, *events: h11.Event) -> None:
        """Sends events, as one piece.

        Raises:
            ConnectionCut: the client is gone or does not read.
        """
        assert self._http is not None
        data = b"".join(self._http.send(event) or b"" for event in events)
        if data:
            await self.send_bytes(data)

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

    async def _refuse(self, reply: HttpReply, error: HttpRefused) -> None:
        self._linger = True
        _log.info("http.refused", peer=self._peer, status=error.status, error=error.message)
        if reply.begun or (self._http is not None and self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE)):
            raise ConnectionCut from error
        reply.close_after = True
        await reply.send(error_response(error.status, error.message, error.headers))
        await reply.finish()

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
