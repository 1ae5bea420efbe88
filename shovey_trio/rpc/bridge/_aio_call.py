"""Server calls on grpc.aio: the asyncio coroutine that grpc runs, and the trio task that the handler runs in.

grpc keeps the call's C structures alive only until its coroutine returns, and does not guard against use after that.
So the coroutine waits for the handler whatever happens, and passes grpc's cancellation on instead of obeying it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Any, NoReturn, Protocol

import grpc
import trio
from google.protobuf.message import DecodeError

from shovey_trio.core.errors import Code
from shovey_trio.rpc.bridge._operation import Operation, OperationCancelled
from shovey_trio.rpc.bridge._runtime import Runtime
from shovey_trio.rpc.bridge.calls import Route
from shovey_trio.rpc.bridge.methods import Method
from shovey_trio.rpc.bridge.status import AbortRpc, RpcStatus, encode_details
from shovey_trio.rpc.bridge.tls import uri_identities

# Seconds within which the C core reports a cancellation after an end of stream that came from it: both are reported by
# one pass over the lost call, microseconds apart.
_SETTLE = 0.005

_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}


def _is_news(record: logging.LogRecord) -> bool:
    """Tell grpc.aio's tracebacks about clients that left during the last write from those about bugs."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, grpc.aio.InternalError | asyncio.CancelledError)


logging.getLogger("grpc._cython.cygrpc").addFilter(_is_news)


class CallHost(Protocol):
    """What a call needs of its server."""

    runtime: Runtime

    def begin(self, call: AioServerCall) -> None:
        """Start ``call.handle`` as a trio task."""

    def end(self, call: AioServerCall) -> None:
        """Forget a call whose handler has ended."""

    async def admit(self, call: AioServerCall) -> None:
        """Run the authorization hook."""

    def status_for(self, error: Exception, call: AioServerCall) -> RpcStatus:
        """Return what the client may know about ``error``, and log what it may not."""


class AioServerCall:
    """Implements ``ServerCall``."""

    __slots__ = (
        "_broken",
        "_context",
        "_deadline",
        "_ended",
        "_gone",
        "_half_closed",
        "_host",
        "_read",
        "_receiving",
        "_request",
        "_response",
        "_route",
        "_scope",
        "_sending",
        "_settled",
        "_spoken",
        "_status",
        "_write",
    )

    def __init__(self, host: CallHost, route: Route, context: Any, request: bytes | None) -> None:
        remaining = context.time_remaining()
        self._deadline = math.inf if remaining is None else trio.current_time() + remaining
        self._host = host
        self._route = route
        self._context = context
        self._request = request
        self._scope = trio.CancelScope(shield=True, deadline=self._deadline)
        self._read: Operation[Any] | None = None
        self._write: Operation[None] | None = None
        self._receiving = self._sending = False
        self._half_closed = False  # the client said that no request follows
        self._spoken = False  # initial metadata is out
        self._broken = False  # a send found the client gone
        self._gone = False  # grpc said that the client is gone
        self._ended = False  # the handler has ended; the C structures may go
        self._settled: asyncio.Future[None] | None = None
        self._status: RpcStatus | None = None
        self._response: bytes | None = None

    # -- what handlers see

    @property
    def method(self) -> Method[Any, Any]:
        return self._route.method

    @property
    def metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return tuple((key, value) for key, value in self._live().invocation_metadata())

    @property
    def peer(self) -> str:
        return str(self._live().peer())

    @property
    def peer_certificate(self) -> bytes | None:
        pem = self._live().auth_context().get("x509_pem_cert")
        return pem[0] if pem else None

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
            return await self._receive()
        finally:
            self._receiving = False

    async def send(self, message: Any) -> None:
        if self._sending:
            raise trio.BusyResourceError("another task is already sending on this call")
        self._sending = True
        try:
            await self._send(message.SerializeToString())
        finally:
            self._sending = False

    def __aiter__(self) -> AioServerCall:
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

    async def conduct(self) -> bytes | None:
        """Asyncio side: run the handler in trio, and return what grpc shall send as the one response, if any."""
        loop = self._host.runtime.loop
        self._host.begin(self)
        while not self._ended:
            self._settled = loop.create_future()
            try:
                await self._settled
            except asyncio.CancelledError:  # noqa: ASYNC103  # raised again below, once the handler has ended
                self._gone = True
                self.cancel("the client cancelled, its deadline passed or its connection was lost")
        if self._gone:
            raise asyncio.CancelledError
        if self._status is not None:
            message, trailing = encode_details(self._status)
            try:
                await self._context.abort(_BY_NUMBER[self._status.code.value], message, trailing)
            except grpc.aio.AbortError:
                raise  # how grpc wants to be told
            except grpc.aio.BaseError:
                pass  # a client that went away in this very moment, or a server that did, needs no status
        return self._response

    async def handle(self) -> None:
        """Trio side: run the handler to its end. Lets no ``Exception`` out."""
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
            self._status = RpcStatus(code=Code.UNAVAILABLE, message="the server is going away")
            raise
        finally:
            self._ended = True
            self._host.end(self)
            if self._settled is not None and not self._settled.done():
                self._settled.set_result(None)

    def _cut_short(self) -> RpcStatus:
        if trio.current_time() >= self._deadline:
            return RpcStatus(code=Code.DEADLINE_EXCEEDED, message="the deadline of the RPC has passed")
        return RpcStatus(code=Code.UNAVAILABLE, message="the server is going away")

    async def _invoke(self) -> bytes | None:
        route, method = self._route, self._route.method
        if self._request is None:
            result = await route.handler(self)
        else:
            request, self._request = self._request, None
            result = await route.handler(_parse(method.request_type, request), self)
        if method.server_streaming:
            return None
        encoded: bytes = result.SerializeToString()
        return encoded

    # -- the stream

    async def _receive(self) -> Any:
        if self._half_closed or not self._route.method.client_streaming:
            await trio.lowlevel.checkpoint()
            raise trio.EndOfChannel
        if self._read is None:
            self._read = Operation(self._host.runtime.loop, self._live().read())
        read = self._read
        await read.settled()
        self._read = None
        try:
            raw = read.result()  # no checkpoint between here and the return: the message would be lost
        except (grpc.aio.BaseError, OperationCancelled):
            await self._fail_broken()
        if raw is grpc.aio.EOF:
            await self._confirm_half_close()
            self._half_closed = True
            raise trio.EndOfChannel
        return _parse(self._route.method.request_type, raw)

    async def _confirm_half_close(self) -> None:
        """Return if the client half-closed; do not if it is gone, which grpc.aio reports as the same end of stream.

        An upload whose client was killed must not look complete. Sending the initial metadata early tells the two
        apart: grpc refuses it on a dead call. A handler that has sent something already cannot ask that way and
        gives the cancellation a moment to arrive.
        """
        if self._spoken:
            await self._settle()
            return
        self._spoken = True
        try:
            await Operation(self._host.runtime.loop, self._live().send_initial_metadata(())).wait()
        except grpc.aio.BaseError:
            await self._fail_broken()

    async def _send(self, raw: bytes) -> None:
        if self._write is not None:  # a send that was cancelled while grpc had its message
            await self._finish_write(self._write)
        self._spoken = True
        self._write = Operation(self._host.runtime.loop, self._live().write(raw))
        await self._finish_write(self._write)

    async def _finish_write(self, write: Operation[None]) -> None:
        await write.settled()
        self._write = None
        try:
            write.result()
        except (grpc.aio.BaseError, OperationCancelled):
            await self._fail_broken()

    async def _fail_broken(self) -> NoReturn:
        self._broken = True
        await self._settle()  # the cancellation is on its way and says more than an error
        raise trio.BrokenResourceError("the client is gone")

    async def _settle(self) -> None:
        """Give a cancellation that may be on its way the time to arrive."""
        await trio.sleep(_SETTLE)
        await self._host.runtime.loop.catch_up()

    def _live(self) -> Any:
        if self._ended:
            raise trio.ClosedResourceError("the RPC has ended")
        return self._context


def _parse(message_type: type[Any], raw: bytes) -> Any:
    try:
        return message_type.FromString(raw)
    except DecodeError as error:
        status = RpcStatus(code=Code.INVALID_ARGUMENT, message="the request is not a valid message")
        raise AbortRpc(status) from error


def _is_broken_resource(error: Exception) -> bool:
    if isinstance(error, ExceptionGroup):
        return all(_is_broken_resource(inner) for inner in error.exceptions)
    return isinstance(error, trio.BrokenResourceError | trio.ClosedResourceError)
