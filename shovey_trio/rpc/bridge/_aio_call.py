"""Server calls on grpc.aio: the asyncio coroutine that grpc runs, beside the trio task that the handler runs in.

grpc keeps the call's C structures alive only until its coroutine returns, and does not guard against use after that.
So the coroutine waits for the handler whatever happens, and passes grpc's cancellation on instead of obeying it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Any, Final

import grpc
import trio

from shovey_trio.rpc.bridge._operation import Operation, OperationCancelled
from shovey_trio.rpc.bridge._runtime import Runtime
from shovey_trio.rpc.bridge._server_call import CallHost, HandledCall
from shovey_trio.rpc.bridge.calls import Route
from shovey_trio.rpc.bridge.status import encode_details

# Seconds within which the C core reports a cancellation after an end of stream that came from it: both are reported by
# one pass over the lost call, microseconds apart.
SETTLE: Final = 0.005

_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}


def _is_news(record: logging.LogRecord) -> bool:
    """Tell grpc.aio's tracebacks about clients that left during the last write from those about bugs."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, grpc.aio.InternalError | asyncio.CancelledError)


logging.getLogger("grpc._cython.cygrpc").addFilter(_is_news)


class AioServerCall(HandledCall):
    """One RPC of ``AioEngine``."""

    __slots__ = ("_context", "_read", "_runtime", "_settled", "_spoken", "_write")

    def __init__(self, host: CallHost, runtime: Runtime, route: Route, context: Any, request: bytes | None) -> None:
        remaining = context.time_remaining()
        deadline = math.inf if remaining is None else trio.current_time() + remaining
        super().__init__(host, route, deadline=deadline, request=request)
        self._runtime = runtime
        self._context = context
        self._read: Operation[Any] | None = None
        self._write: Operation[None] | None = None
        self._spoken = False  # initial metadata is out
        self._settled: asyncio.Future[None] | None = None

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

    async def conduct(self) -> bytes | None:
        """Asyncio side: run the handler in trio, and return what grpc shall send as the one response, if any."""
        loop = self._runtime.loop
        self._host.begin(self)
        # While something posted is on its way, grpc does not know yet that the beginning of the response is out.
        while not self._ended or (self._posting and not self._gone):
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

    def _conclude(self) -> None:
        if self._settled is not None and not self._settled.done():
            self._settled.set_result(None)

    async def _receive(self) -> bytes:
        if self._read is None:
            self._read = Operation(self._runtime.loop, self._live().read())
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
        return raw  # type: ignore[no-any-return]  # grpcio is not typed

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
            await Operation(self._runtime.loop, self._live().send_initial_metadata(())).wait()
        except grpc.aio.BaseError:
            await self._fail_broken()

    async def _send(self, raw: bytes) -> None:
        if self._write is not None:  # a send that was cancelled while grpc had its message
            await self._finish_write(self._write)
        self._spoken = True
        self._write = Operation(self._runtime.loop, self._live().write(raw))
        await self._finish_write(self._write)

    async def _finish_write(self, write: Operation[None]) -> None:
        await write.settled()
        self._write = None
        try:
            write.result()
        except (grpc.aio.BaseError, OperationCancelled):
            await self._fail_broken()

    def _send_posted(self, raw: bytes) -> None:
        if not self._gone:
            self._spoken = True
            self._write = Operation(self._runtime.loop, self._write_posted(raw))

    async def _write_posted(self, raw: bytes | None) -> None:
        """Asyncio side: send what was posted until there is no more, or nobody to send it to."""
        try:
            while raw is not None:
                await self._context.write(raw)
                raw = self._next_posted()
        except grpc.aio.BaseError:
            pass  # the cancellation says it
        finally:
            self._posting = False
            self._conclude()

    async def _settle(self) -> None:
        await trio.sleep(SETTLE)
        await self._runtime.loop.catch_up()

    def _live(self) -> Any:
        self._check_live()
        return self._context
