"""gRPC channels inside trio: deadlines come from the caller's cancel scope, errors are ``RpcError``."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, Generic, NoReturn, TypeVar

import grpc
import grpc.aio
import trio
from google.protobuf.message import DecodeError, Message

from shovey_trio.core.errors import Code
from shovey_trio.observe.threads import is_refused_thread
from shovey_trio.rpc.bridge._operation import Operation, OperationCancelled
from shovey_trio.rpc.bridge._runtime import Runtime, open_runtime
from shovey_trio.rpc.bridge.methods import Method
from shovey_trio.rpc.bridge.status import RpcError, decode_error
from shovey_trio.rpc.bridge.tls import ClientTls, channel_credentials

Req = TypeVar("Req", bound=Message)
Res = TypeVar("Res", bound=Message)

Metadata = Sequence[tuple[str, str | bytes]]

_CLOSE_DEADLINE: Final = 2.0
# Seconds that the wall clock grpc counts by and trio's clock may disagree about one deadline.
_DEADLINE_SKEW: Final = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelOptions:
    """Limits, keepalive and reconnect behaviour of a channel.

    Attributes:
        max_receive_bytes: largest response message.
        keepalive_interval: seconds between pings on a silent connection; ``None`` never pings.
        keepalive_timeout: seconds without an answer after which the connection is lost.
        connect_timeout: how long one attempt to connect may take, TLS handshake included, seconds. Long: when a whole
            fleet connects at once, an attempt that is given up has cost the server as much as one that succeeds.
        max_reconnect_backoff: longest pause between attempts to connect, seconds.
        server_name: name to verify the server's certificate against instead of the target's host; for tests.
    """

    max_receive_bytes: int = 16 * 1024 * 1024
    keepalive_interval: float | None = 30.0
    keepalive_timeout: float = 20.0
    connect_timeout: float = 20.0
    max_reconnect_backoff: float = 5.0
    server_name: str | None = None

    def arguments(self) -> list[tuple[str, int | str]]:
        """Return the C core's channel arguments."""
        arguments: list[tuple[str, int | str]] = [
            ("grpc.max_receive_message_length", self.max_receive_bytes),
            ("grpc.initial_reconnect_backoff_ms", 200),
            # Not a pause, in spite of its name: the shortest time after which an attempt is given up.
            ("grpc.min_reconnect_backoff_ms", round(self.connect_timeout * 1000)),
            ("grpc.max_reconnect_backoff_ms", round(self.max_reconnect_backoff * 1000)),
            # A new channel is a new connection: certificates are renewed by opening one before closing the other.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", 0),  # nodes talk to their controller, never to $http_proxy
        ]
        if self.keepalive_interval is not None:
            arguments += [
                ("grpc.keepalive_time_ms", round(self.keepalive_interval * 1000)),
                ("grpc.keepalive_timeout_ms", round(self.keepalive_timeout * 1000)),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.max_pings_without_data", 0),
            ]
        if self.server_name is not None:
            arguments.append(("grpc.ssl_target_name_override", self.server_name))
        return arguments


class ClientStream(Generic[Req, Res]):
    """A streaming RPC in progress; made by ``Channel.stream``, valid in its block."""

    def __init__(self, runtime: Runtime, method: Method[Req, Res], call: Any) -> None:
        self._runtime = runtime
        self._method = method
        self._call = call
        self._read: Operation[Any] | None = None
        self._write: Operation[None] | None = None
        self._receiving = self._sending = False
        self._half_closed = not method.client_streaming
        self._complete = False

    async def send(self, message: Req) -> None:
        """Send a request; returns when grpc has taken it, so a slow server slows the sender.

        Cancellation: the message may or may not be delivered.

        Raises:
            RpcError: the RPC has ended with this error.
            trio.ClosedResourceError: after ``half_close``.
            trio.BrokenResourceError: the server has ended the RPC with OK and wants no more.
            trio.BusyResourceError: another task is sending.
        """
        if self._half_closed:
            raise trio.ClosedResourceError("this side of the stream is closed")
        raw = message.SerializeToString()
        await self._exclusively(lambda: _write(self._call, raw))

    async def half_close(self) -> None:
        """Tell the server that no request follows; nothing to tell if done already or if the RPC has ended with OK.

        Raises:
            RpcError: the RPC has ended with this error.
            trio.BusyResourceError: another task is sending.
        """
        if self._sending:
            raise trio.BusyResourceError("another task is already sending on this stream")
        if not self._half_closed:
            self._half_closed = True
            with suppress(trio.BrokenResourceError):
                await self._exclusively(self._call.done_writing)

    async def receive(self) -> Res:
        """Return the next response; of an RPC with one response that one, once.

        Cancellation: nothing is lost, the next ``receive`` returns the message.

        Raises:
            trio.EndOfChannel: the RPC has ended with OK.
            RpcError: the RPC has ended with this error.
            trio.BusyResourceError: another task is receiving.
        """
        if self._receiving:
            raise trio.BusyResourceError("another task is already receiving on this stream")
        self._receiving = True
        try:
            return await self._receive()
        finally:
            self._receiving = False

    def __aiter__(self) -> ClientStream[Req, Res]:
        return self

    async def __anext__(self) -> Res:
        try:
            return await self.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    def cancel(self) -> None:
        """End the RPC if it has not ended; the server's handler is cancelled."""
        with self._runtime.entered():
            self._call.cancel()

    async def _receive(self) -> Res:
        if self._complete:
            await trio.lowlevel.checkpoint()
            raise trio.EndOfChannel
        if self._read is None:
            reader = self._call.read() if self._method.server_streaming else self._call.__await__()
            self._read = Operation(self._runtime.loop, reader)
        read = self._read
        await read.settled()
        self._read = None
        try:
            raw = read.result()  # no checkpoint between here and the return: the message would be lost
        except (grpc.aio.AioRpcError, OperationCancelled) as error:
            await _raise_for(error)
        self._complete = raw is grpc.aio.EOF or not self._method.server_streaming
        if raw is grpc.aio.EOF:
            raise trio.EndOfChannel
        return _parse(self._method.response_type, raw)

    async def _exclusively(self, write: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if self._sending:
            raise trio.BusyResourceError("another task is already sending on this stream")
        self._sending = True
        try:
            if self._write is not None:  # a send that was cancelled while grpc had its message
                await self._finish_write(self._write)
            self._write = Operation(self._runtime.loop, write())
            await self._finish_write(self._write)
        finally:
            self._sending = False

    async def _finish_write(self, write: Operation[None]) -> None:
        await write.settled()
        self._write = None
        try:
            write.result()
        except grpc.aio.AioRpcError as error:
            await _raise_for(error)
        except (grpc.aio.BaseError, asyncio.InvalidStateError, OperationCancelled):
            await self._raise_for_end()

    async def _raise_for_end(self) -> NoReturn:
        code = await Operation(self._runtime.loop, self._call.code()).wait()
        if code is grpc.StatusCode.OK:
            raise trio.BrokenResourceError("the server has ended the RPC")
        message = await Operation(self._runtime.loop, self._call.details()).wait()
        trailing = await Operation(self._runtime.loop, self._call.trailing_metadata()).wait()
        raise await _judged(decode_error(code.value[0], message, tuple(trailing)))


class Channel:
    """Connections to one target, made and remade as RPCs need them; made by ``open_channel``."""

    def __init__(self, runtime: Runtime, channel: grpc.aio.Channel) -> None:
        self._runtime = runtime
        self._channel = channel
        self._callables: dict[str, Any] = {}

    async def unary(
        self,
        method: Method[Req, Res],
        request: Req,
        *,
        metadata: Metadata = (),
        wait_for_ready: bool = False,
    ) -> Res:
        """Call a method with one request and one response.

        The deadline of the caller's cancel scope goes to the server. Without ``wait_for_ready`` an unreachable server
        fails the RPC as soon as one attempt to connect has failed; with it the RPC waits for a connection as long as
        the cancel scope allows.

        Cancellation: cancels the RPC.

        Raises:
            RpcError: the RPC ended with this error. When the caller's own deadline ends it, that is not an error
                here: the cancel scope is cancelled as for any other await.
        """
        if method.client_streaming or method.server_streaming:
            raise ValueError(f"{method.path} is a streaming method")
        call = self._start(method, request, metadata, wait_for_ready)
        operation: Operation[bytes] = Operation(self._runtime.loop, call.__await__())
        try:
            raw = await operation.wait()
        except trio.Cancelled:
            with self._runtime.entered():
                call.cancel()
            raise
        except (grpc.aio.AioRpcError, OperationCancelled) as error:
            await _raise_for(error)
        return _parse(method.response_type, raw)

    @asynccontextmanager
    async def stream(
        self,
        method: Method[Req, Res],
        request: Req | None = None,
        *,
        metadata: Metadata = (),
        wait_for_ready: bool = False,
    ) -> AsyncIterator[ClientStream[Req, Res]]:
        """Call a streaming method for the block; ``request`` for those that take exactly one.

        The deadline of the cancel scope around the block goes to the server. Leaving the block cancels the RPC unless
        it has ended. Failures to connect appear at the first ``send`` or ``receive``.
        """
        if not (method.client_streaming or method.server_streaming):
            raise ValueError(f"{method.path} is not a streaming method")
        if (request is None) != method.client_streaming:
            raise ValueError(f"{method.path} takes {'a stream' if method.client_streaming else 'one request'}")
        call = self._start(method, request, metadata, wait_for_ready)
        stream = ClientStream(self._runtime, method, call)
        try:
            yield stream
        finally:
            stream.cancel()

    def _start(
        self, method: Method[Any, Any], request: Message | None, metadata: Metadata, wait_for_ready: bool
    ) -> Any:
        deadline = trio.current_effective_deadline()
        timeout = None if deadline == math.inf else max(0.0, deadline - trio.current_time())
        arguments = () if request is None else (request.SerializeToString(),)
        with self._runtime.entered():
            return self._callable(method)(
                *arguments, timeout=timeout, metadata=tuple(metadata), wait_for_ready=wait_for_ready or None
            )

    def _callable(self, method: Method[Any, Any]) -> Any:
        known = self._callables.get(method.path)
        if known is None:
            match method.client_streaming, method.server_streaming:
                case False, False:
                    known = self._channel.unary_unary(method.path)
                case False, True:
                    known = self._channel.unary_stream(method.path)
                case True, False:
                    known = self._channel.stream_unary(method.path)
                case _:
                    known = self._channel.stream_stream(method.path)
            self._callables[method.path] = known
        return known


@asynccontextmanager
async def open_channel(
    target: str, tls: ClientTls | None, *, options: ChannelOptions | None = None
) -> AsyncIterator[Channel]:
    """Open a channel to ``target`` (``host:port``) for the block; it connects when the first RPC needs it.

    Leaving the block cancels what is still in progress. ``tls=None`` is plain text, for tests and loopback.
    """
    arguments = (options or ChannelOptions()).arguments()
    async with open_runtime() as runtime:
        with runtime.entered():
            try:
                channel = (
                    grpc.aio.insecure_channel(target, options=arguments)
                    if tls is None
                    else grpc.aio.secure_channel(target, channel_credentials(tls), options=arguments)
                )
            except RuntimeError as error:
                if not is_refused_thread(error):
                    raise
                raise RpcError(Code.UNAVAILABLE, f"no connection can be made: {error}") from error
        try:
            yield Channel(runtime, channel)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_DEADLINE):
                await runtime.run(channel.close())


async def _write(call: Any, raw: bytes) -> None:
    """Asyncio side: hand a message to the C core.

    ``call.write`` does the same, but turns a refusal into INTERNAL before the server's status, the reason for the
    refusal, has been read.
    """
    if call.done():
        raise asyncio.InvalidStateError
    await call.wait_for_connection()
    await call._cython_call.send_serialized_message(raw)


async def _raise_for(error: grpc.aio.AioRpcError | OperationCancelled) -> NoReturn:
    if isinstance(error, OperationCancelled):
        await trio.lowlevel.checkpoint_if_cancelled()
        raise RpcError(Code.CANCELLED, "the RPC was cancelled here") from None
    trailing = error.trailing_metadata() or ()
    raise await _judged(decode_error(error.code().value[0], error.details(), tuple(trailing))) from None


async def _judged(error: RpcError) -> RpcError:
    """Return ``error``, unless it only says that the caller's own deadline has come: that cancels the caller."""
    if error.code is Code.DEADLINE_EXCEEDED:
        deadline = trio.current_effective_deadline()
        if deadline - trio.current_time() < _DEADLINE_SKEW:
            await trio.sleep_until(deadline)
    return error


def _parse(message_type: type[Res], raw: bytes) -> Res:
    try:
        return message_type.FromString(raw)
    except DecodeError as error:
        raise RpcError(Code.INTERNAL, "the response is not a valid message") from error
