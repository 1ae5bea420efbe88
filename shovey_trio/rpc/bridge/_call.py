"""Server calls on grpcio's completion queue: every operation of the C core has a method that takes its completion.

Two operations may be under way beside the one that reports the end of the call: a read and a write. Neither can be
taken back. A cancelled ``receive`` leaves its read pending and the message in the call, for the next one; what follows
a cancelled ``send`` waits until its write has gone out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import trio
from grpc._cython import cygrpc

from shovey_trio.core.errors import Code
from shovey_trio.rpc.bridge._completions import Completions
from shovey_trio.rpc.bridge._cygrpc import NO_FLAGS
from shovey_trio.rpc.bridge._server_call import CallHost, HandledCall
from shovey_trio.rpc.bridge.calls import Served
from shovey_trio.rpc.bridge.status import RpcStatus, encode_details

# Seconds within which the C core reports a cancellation after an end of stream that came from it: both are reported by
# one pass over the lost call, microseconds apart.
_SETTLE: Final = 0.005
# Later than any deadline that was set on purpose; the C core's "never" is beyond it.
_NEVER: Final = 1e11

_Task = trio.lowlevel.Task


class CallKeeper(Protocol):
    """What a call needs of its listener."""

    completions: Completions

    def wait_for_request(self, call: CoreServerCall) -> None:
        """Keep a call whose one request has not come yet."""

    def request_came(self, call: CoreServerCall) -> None:
        """Forget a call that was kept."""

    def opened(self, served: Served) -> None:
        """Count a call of ``served`` as no longer at its beginning."""


class CoreServerCall(HandledCall):
    """One RPC of ``Engine``.

    ``open`` must be called once. A call that takes one request is handed to its host when that has come, the others
    at once.
    """

    __slots__ = (
        "_call",
        "_drained",
        "_ending",
        "_keeper",
        "_message",
        "_metadata",
        "_opened",
        "_reading",
        "_receiver",
        "_sender",
        "_spoken",
        "_write_failed",
        "_writing",
    )

    def __init__(self, host: CallHost, served: Served, event: Any, keeper: CallKeeper) -> None:
        super().__init__(host, served, deadline=_in_trios_clock(event.call_details.deadline), request=None)
        self._call = event.call
        self._metadata = event.invocation_metadata
        self._keeper = keeper
        self._reading = False
        self._message: bytes | None = None  # read, and not yet received
        self._drained = False  # nothing comes after it
        self._receiver: _Task | None = None
        self._writing = False
        self._write_failed = False
        self._sender: _Task | None = None
        self._spoken = False  # initial metadata is out
        self._opened = False
        self._ending: tuple[Any, ...] = ()  # what to send once the write that is under way has gone out

    def open(self) -> None:
        """Begin; in the task that completions are handed out in."""
        self._start((cygrpc.ReceiveCloseOnServerOperation(NO_FLAGS),), self._on_close)
        try:
            self._give_back = self._host.reserve(self)
        except Exception as error:  # noqa: BLE001  # a refused call ends its RPC and nothing else
            self.refuse(self._host.status_for(error, self))
            return
        if self._served.method.client_streaming:
            self._host.begin(self)
        else:
            self._keeper.wait_for_request(self)
            self._start((cygrpc.ReceiveMessageOperation(NO_FLAGS),), self._on_request)

    def refuse(self, status: RpcStatus) -> None:
        """End a call that has no handler, and will have none."""
        self._ended = True
        self._status = status
        self._conclude()

    # -- what handlers see

    @property
    def metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        self._check_live()
        return tuple((key, value) for key, value in self._metadata)

    @property
    def peer(self) -> str:
        self._check_live()
        peer: bytes = self._call.peer()
        return peer.decode("utf-8", "replace")

    @property
    def peer_certificate(self) -> bytes | None:
        self._check_live()
        pem = cygrpc.auth_context(self._call).get(b"x509_pem_cert")
        return pem[0] if pem else None

    # -- completions

    def _on_close(self, event: Any) -> None:
        if event.batch_operations[0].cancelled():
            self._gone = True
            self.cancel("the client cancelled, its deadline passed or its connection was lost")

    def _on_request(self, event: Any) -> None:
        self._keeper.request_came(self)
        if self._ended:
            return
        self._request = event.batch_operations[0].message()
        if self._request is not None:
            self._host.begin(self)
        else:  # too large, which the C core has answered; none at all; or the client is gone
            self.refuse(RpcStatus(code=Code.UNIMPLEMENTED, message="the method takes one request; none came"))

    def _on_read(self, event: Any) -> None:
        self._reading = False
        self._message = event.batch_operations[0].message()
        self._drained = self._message is None
        if self._receiver is not None:
            task, self._receiver = self._receiver, None
            trio.lowlevel.reschedule(task)

    def _on_write(self, event: Any) -> None:
        self._writing = False
        self._write_failed = not event.success
        if self._sender is not None:
            task, self._sender = self._sender, None
            trio.lowlevel.reschedule(task)
        if self._ending:
            if self._is_usable():
                ending, self._ending = self._ending, ()
                self._end(ending)
        elif self._posting and (raw := self._next_posted()) is not None:
            self._send_posted(raw)

    # -- the stream

    async def _receive(self) -> bytes:
        if self._message is None and not self._drained:
            if not self._reading:
                await self._check_usable()
                self._reading = True
                self._start((cygrpc.ReceiveMessageOperation(NO_FLAGS),), self._on_read)
            self._receiver = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._forget_receiver)
        else:
            await trio.lowlevel.checkpoint()
        raw, self._message = self._message, None  # no checkpoint from here to the return: it would be lost
        if raw is None:
            await self._confirm_half_close()
            self._half_closed = True
            raise trio.EndOfChannel
        return raw

    def _forget_receiver(self, _: Callable[[], None]) -> trio.lowlevel.Abort:
        self._receiver = None
        return trio.lowlevel.Abort.SUCCEEDED

    async def _confirm_half_close(self) -> None:
        """Return if the client half-closed; do not if it is gone, which the C core reports as the same end of stream.

        An upload whose client was killed must not look complete. Sending the initial metadata early tells the two
        apart: the C core refuses it on a dead call. A handler that has sent something already cannot ask that way and
        gives the cancellation a moment to arrive.
        """
        if self._spoken:
            await self._settle()  # ends in the cancellation, if one comes
        else:
            await self._write(())

    async def _send(self, raw: bytes) -> None:
        if self._writing:  # a send that was cancelled while grpc had its message
            await self._written()
        await self._write((cygrpc.SendMessageOperation(raw, NO_FLAGS),))

    async def _write(self, operations: tuple[Any, ...]) -> None:
        await self._check_usable()
        self._start_write(operations)
        await self._written()

    def _send_posted(self, raw: bytes) -> None:
        if self._is_usable():
            self._start_write((cygrpc.SendMessageOperation(raw, NO_FLAGS),))

    def _start_write(self, operations: tuple[Any, ...]) -> None:
        self._writing = True
        self._start(self._after_metadata(operations), self._on_write)

    async def _written(self) -> None:
        self._sender = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._forget_sender)
        if self._write_failed:
            await self._fail_broken()

    def _forget_sender(self, _: Callable[[], None]) -> trio.lowlevel.Abort:
        self._sender = None
        return trio.lowlevel.Abort.SUCCEEDED

    async def _check_usable(self) -> None:
        self._check_live()
        if not self._is_usable():
            await self._fail_broken()

    def _is_usable(self) -> bool:
        return not (self._gone or self._keeper.completions.closing)

    async def _settle(self) -> None:
        await trio.sleep(_SETTLE)
        self._keeper.completions.hand_out_ready()
        await trio.lowlevel.checkpoint()

    # -- the end

    def _conclude(self) -> None:
        self._count_as_opened()
        if self._give_back is not None:
            self._give_back()
        if not self._is_usable():
            return
        if self._status is not None:
            code, (message, trailing) = self._status.code.value, encode_details(self._status)
        else:
            code, message, trailing = Code.OK.value, "", ()
        status = cygrpc.SendStatusFromServerOperation(trailing, code, message.encode(), NO_FLAGS)
        if self._status is None and self._response is not None:
            ending: tuple[Any, ...] = (cygrpc.SendMessageOperation(self._response, NO_FLAGS), status)
        else:
            ending = (status,)
        if self._writing:
            self._ending = ending
        else:
            self._end(ending)

    def _end(self, operations: tuple[Any, ...]) -> None:
        self._start(self._after_metadata(operations), _nothing_follows)

    def _after_metadata(self, operations: tuple[Any, ...]) -> tuple[Any, ...]:
        if self._spoken:
            return operations
        self._spoken = True
        self._count_as_opened()
        return (cygrpc.SendInitialMetadataOperation((), NO_FLAGS), *operations)

    def _count_as_opened(self) -> None:
        if not self._opened:
            self._opened = True
            self._keeper.opened(self._served)

    def _start(self, operations: Sequence[Any], completed: Callable[[Any], None]) -> None:
        error = self._call.start_server_batch(operations, completed)
        assert not error, f"the C core refuses {operations}: {error}"  # it would never complete


def refuse_unknown(call: Any) -> None:
    """End a call of a method that is not served."""
    status = cygrpc.SendStatusFromServerOperation(
        (), Code.UNIMPLEMENTED.value, b"the method is not served here", NO_FLAGS
    )
    call.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(NO_FLAGS),), _nothing_follows)
    call.start_server_batch((cygrpc.SendInitialMetadataOperation((), NO_FLAGS), status), _nothing_follows)


def _nothing_follows(_: Any) -> None:
    """Takes a completion after which there is nothing to do."""


def _in_trios_clock(deadline: float | None) -> float:
    if deadline is None or deadline > _NEVER:
        return math.inf
    return trio.current_time() + deadline - time.time()
