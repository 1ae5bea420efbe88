"""A server call as its handler sees it: the handler's trio task, its cancel scope, and how it ends."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

import trio
from google.protobuf.message import DecodeError

from shovey_trio.core.errors import Code
from shovey_trio.rpc.bridge.calls import Served
from shovey_trio.rpc.bridge.methods import Method
from shovey_trio.rpc.bridge.status import AbortRpc, RpcStatus
from shovey_trio.rpc.bridge.tls import uri_identities

GOING_AWAY = RpcStatus(code=Code.UNAVAILABLE, message="the server is going away")


class CallHost(Protocol):
    """What a call needs of its server."""

    def reserve(self, call: HandledCall) -> Callable[[], None] | None:
        """Take a place for a call that has come in; raises to refuse it. What it returns gives the place back."""

    def begin(self, call: HandledCall) -> None:
        """Start ``call.handle`` as a trio task."""

    def end(self, call: HandledCall) -> None:
        """Forget a call whose handler has ended."""

    async def admit(self, call: HandledCall) -> None:
        """Run the authorization hook."""

    def status_for(self, error: Exception, call: HandledCall) -> RpcStatus:
        """Return what the client may know about ``error``, and log what it may not."""


class HandledCall:
    """Implements ``ServerCall``, but for what is done with the stream: that is ``_call.CoreServerCall``'s."""

    __slots__ = (
        "_broken",
        "_cause",
        "_deadline",
        "_ended",
        "_give_back",
        "_gone",
        "_half_closed",
        "_host",
        "_posted",
        "_posting",
        "_receiving",
        "_request",
        "_response",
        "_scope",
        "_sending",
        "_served",
        "_status",
        "owner",
    )

    def __init__(self, host: CallHost, served: Served, *, deadline: float, request: bytes | None) -> None:
        self._host = host
        self._served = served
        self._deadline = deadline
        self._request = request
        self._scope = trio.CancelScope(shield=True, deadline=deadline)
        self._receiving = self._sending = self._posting = False
        self._posted: deque[bytes] | None = None  # made when a message has to wait: most streams never need it
        self._half_closed = False  # the client said that no request follows
        self._broken = False  # a send or receive found the client gone
        self._gone = False  # grpc said that the client is gone
        self._ended = False  # the handler has ended; the C structures may go
        self._cause: RpcStatus | None = None  # why the server has cut this call
        self._status: RpcStatus | None = None
        self._response: bytes | None = None
        self._give_back: Callable[[], None] | None = None  # its place
        self.owner = ""

    # -- what handlers see

    @property
    def method(self) -> Method[Any, Any]:
        return self._served.method

    @property
    @abstractmethod
    def metadata(self) -> tuple[tuple[str, str | bytes], ...]: ...

    @property
    @abstractmethod
    def peer(self) -> str: ...

    @property
    @abstractmethod
    def peer_certificate(self) -> bytes | None: ...

    @property
    def identities(self) -> tuple[str, ...]:
        certificate = self.peer_certificate
        return () if certificate is None else uri_identities(certificate)

    @property
    def deadline(self) -> float:
        return self._deadline

    def time_remaining(self) -> float:
        return max(0.0, self._deadline - trio.current_time())

    async def receive(self) -> Any:
        if self._receiving:
            raise trio.BusyResourceError("another task is already receiving on this call")
        self._receiving = True
        try:
            if self._half_closed or not self._served.method.client_streaming:
                await trio.lowlevel.checkpoint()
                raise trio.EndOfChannel
            return parse_request(self._served, await self._receive())
        finally:
            self._receiving = False

    async def send(self, message: Any) -> None:
        if self._sending or self._posting:
            raise trio.BusyResourceError("another task is already sending on this call, or something is posted")
        self._sending = True
        try:
            await self._send(message.SerializeToString())
        finally:
            self._sending = False

    @property
    def posted(self) -> int:
        return 0 if self._posted is None else len(self._posted)

    def post(self, message: Any) -> None:
        if self._sending:
            raise trio.BusyResourceError("a task is already sending on this call")
        if self._ended:
            return
        raw = message.SerializeToString()
        if not self._posting:
            self._posting = True
            self._send_posted(raw)
        elif self._posted is None:
            self._posted = deque((raw,))
        else:
            self._posted.append(raw)

    def __aiter__(self) -> HandledCall:
        return self

    async def __anext__(self) -> Any:
        try:
            return await self.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    # -- what the server does with it

    def cancel(self, reason: str) -> None:
        """Cancel the handler."""
        self._scope.cancel(reason=reason)

    def cut(self, status: RpcStatus) -> None:
        """Cancel the handler and tell the client why."""
        self._cause = status
        self._scope.cancel(reason=status.message)

    async def handle(self) -> None:
        """Run the handler to its end. Lets no ``Exception`` out."""
        try:
            with self._scope:
                await self._host.admit(self)
                self._response = await self._invoke()
            if self._scope.cancelled_caught and not self._gone:
                self._status = self._cut_short()
        except Exception as error:  # noqa: BLE001  # a handler's failure ends its RPC and nothing else
            if (self._gone or self._broken) and _is_broken_resource(error):
                # Nobody hears it, unless it is this server that goes: then the client may try again.
                self._status = RpcStatus(code=Code.UNAVAILABLE, message="the connection is gone")
            else:
                self._status = self._host.status_for(error, self)
        except BaseException:
            self._status = GOING_AWAY
            raise
        finally:
            self._ended = True
            self._posted = None
            self._host.end(self)
            self._conclude()

    # -- what is done with the stream

    @abstractmethod
    async def _receive(self) -> bytes:
        """Return the next request; ``trio.EndOfChannel`` after the last one, with ``_half_closed`` set."""

    @abstractmethod
    async def _send(self, raw: bytes) -> None:
        """Send a response, and return when grpc has taken it."""

    @abstractmethod
    def _send_posted(self, raw: bytes) -> None:
        """Begin to send ``raw``, and after it all that ``_next_posted`` returns; drop it if the client is gone."""

    @abstractmethod
    async def _settle(self) -> None:
        """Give a cancellation that may be on its way the time to arrive."""

    @abstractmethod
    def _conclude(self) -> None:
        """End the RPC with ``_status`` or ``_response``; the handler has ended."""

    def _next_posted(self) -> bytes | None:
        """Return what is to be sent next, after something posted has gone; ``None`` when that is nothing."""
        if self._posted and not self._ended:
            return self._posted.popleft()
        self._posted = None
        self._posting = False
        return None

    async def _fail_broken(self) -> NoReturn:
        self._broken = True
        await self._settle()  # the cancellation is on its way and says more than an error
        raise trio.BrokenResourceError("the client is gone")

    def _check_live(self) -> None:
        if self._ended:
            raise trio.ClosedResourceError("the RPC has ended")

    def _cut_short(self) -> RpcStatus:
        if trio.current_time() >= self._deadline:
            return RpcStatus(code=Code.DEADLINE_EXCEEDED, message="the deadline of the RPC has passed")
        return self._cause or GOING_AWAY

    async def _invoke(self) -> bytes | None:
        served, method = self._served, self._served.method
        if self._request is None:
            result = await served.handler(self)
        else:
            request, self._request = self._request, None
            result = await served.handler(parse_request(served, request), self)
        if method.server_streaming:
            return None
        encoded: bytes = result.SerializeToString()
        return encoded


def parse_request(served: Served, raw: bytes) -> Any:
    """Return the message in ``raw``.

    Raises:
        AbortRpc: INVALID_ARGUMENT.
    """
    try:
        return served.method.request_type.FromString(raw)
    except DecodeError as error:
        status = RpcStatus(code=Code.INVALID_ARGUMENT, message="the request is not a valid message")
        raise AbortRpc(status) from error


def _is_broken_resource(error: Exception) -> bool:
    if isinstance(error, ExceptionGroup):
        return all(_is_broken_resource(inner) for inner in error.exceptions)
    return isinstance(error, trio.BrokenResourceError | trio.ClosedResourceError)
