"""The asyncio loop that grpc.aio runs on: trio-asyncio's, with callbacks run in batches.

trio-asyncio runs one asyncio callback per trio checkpoint, and a full extra round per readable descriptor; measured
with grpc.aio that is 3.7 times the cost of plain asyncio. This subclass keeps ready callbacks in a deque, runs up to
``BATCH`` of them between two checkpoints and parks its task when there are none. Only the places where trio-asyncio
hands work over are overridden (``_queue_handle``, ``_main_loop_init``, ``_main_loop_one``, ``_io_task``); nothing is
replaced in its modules, so other users of trio-asyncio in the process see no difference.

trio-asyncio's async generator hooks are not installed: they read ``ag_frame``, which grpcio's Cython generators lack.
The bridge uses no asyncio generators, so trio's own hooks stay in force.
"""

from __future__ import annotations

import asyncio
import heapq
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Any, Final

import structlog
import trio
from trio_asyncio._async import TrioEventLoop

_log = structlog.get_logger(__name__)

# Callbacks between two checkpoints: about 1 ms of grpc.aio work. Most of them make a trio task ready that has 100 µs of
# work of its own in the next pass of the loop, so that it is these whom a batch keeps others waiting with.
BATCH: Final = 64
# From a completion in grpc's queue to the cancellation of our coroutine: the future, the task that watches for the end
# of the call, the task of the call, and one to spare.
_HOPS: Final = 4


class BatchedLoop(TrioEventLoop):  # type: ignore[misc]  # trio-asyncio ships no types
    """An asyncio event loop inside the running trio loop, for grpc.aio alone."""

    _nursery: trio.Nursery | None

    def __init__(self) -> None:
        super().__init__()
        # Bounded by grpc itself: at most one callback per outstanding operation, and we keep at most one read and one
        # write per stream.
        self._callbacks: deque[asyncio.Handle] = deque()
        self._parked: trio.lowlevel.Task | None = None
        self._draining = False  # a descriptor's task is running callbacks; the main task need not wake for them

    def time(self) -> float:
        return trio.current_time()

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._queue_handle(handle)
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        if self.is_closed():
            # grpc hands out completions of all loops from one queue. One that comes after its loop's end has nobody
            # waiting for it; raising here would stop grpc from handing out the next ones, which are another loop's.
            handle.cancel()
        else:
            self._token.run_sync_soon(self._queue_handle, handle)
        return handle

    async def catch_up(self) -> None:
        """Return when everything that grpc had reported by now has been acted on, through ``_HOPS`` callbacks deep."""
        for _ in range(2):  # one for the poller's descriptor to be seen, one for its task to run
            await trio.lowlevel.checkpoint()
        for _ in range(_HOPS):
            passed = trio.Event()
            self.call_soon(passed.set)
            await passed.wait()

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        """Log what a callback raised. One broken RPC must not end the daemon, as trio-asyncio's default would."""
        _log.error("bridge.callback_failed", message=context.get("message"), exc_info=context.get("exception"))

    def _queue_handle(self, handle: asyncio.Handle) -> asyncio.Handle:
        self._check_closed()
        if isinstance(handle, asyncio.TimerHandle):
            heapq.heappush(self._timers, handle)
        else:
            self._callbacks.append(handle)
        if not self._draining:
            self._wake()
        return handle

    async def _main_loop_init(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._task = trio.lowlevel.current_task()
        self._token = trio.lowlevel.current_trio_token()
        self._asyncgen_dispatcher = _NoGeneratorHooks()

    async def _main_loop_one(self, no_wait: bool = False) -> None:
        now = self.time()
        while self._timers and self._timers[0]._when <= now:
            self._callbacks.append(heapq.heappop(self._timers))
        if self._callbacks:
            self._run_batch()
            if self._callbacks and not no_wait:
                await trio.lowlevel.checkpoint()
        elif no_wait:
            raise trio.WouldBlock
        elif self._timers:
            with trio.CancelScope(deadline=self._timers[0]._when):
                await self._park()
        else:
            await self._park()

    async def _park(self) -> None:
        self._parked = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._unpark)

    def _wake(self) -> None:
        if self._parked is not None:
            task, self._parked = self._parked, None
            trio.lowlevel.reschedule(task)

    def _unpark(self, _: Callable[[], None]) -> trio.lowlevel.Abort:
        self._parked = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _run_batch(self) -> None:
        """Run ready callbacks, and what they make ready in turn, up to ``BATCH``."""
        callbacks = self._callbacks
        remaining = BATCH
        while callbacks and remaining:
            remaining -= 1
            handle = callbacks.popleft()
            if not handle._cancelled:
                handle._run()

    async def _io_task(
        self,
        fd: socket.socket | int,
        handle: Any,
        wait_ready: Callable[[socket.socket | int], Awaitable[None]],
    ) -> None:
        """Run ``handle`` whenever ``fd`` is ready, and the callbacks that it made ready, in the same trio step."""
        with handle._scope:
            while not handle.cancelled():
                try:
                    await wait_ready(fd)
                except (OSError, trio.ClosedResourceError):
                    if handle.cancelled():  # removed and closed without a checkpoint in between
                        return
                    raise
                if handle.cancelled():
                    return
                _join_wakeups(fd)
                # A stop request is a callback that raises in whoever runs it; that must be the main task.
                self._draining = self._stop_wait is None
                try:
                    handle._run()
                    if self._draining:
                        self._run_batch()
                finally:
                    self._draining = False
                    if self._callbacks or self._timers:
                        self._wake()


def _join_wakeups(fd: socket.socket | int) -> None:
    """Leave one of the bytes that grpc's poller thread wrote.

    The thread queues an event and then writes one byte for it; the reader takes one byte and drains the whole queue.
    Without this every further byte of a burst costs a round through the loop that finds the queue empty. Bytes are
    taken before the reader drains, so an event whose byte is gone is always still in the queue at that moment.
    """
    if isinstance(fd, socket.socket):
        pending = len(fd.recv(4096, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        if pending > 1:
            fd.recv(pending - 1, socket.MSG_DONTWAIT)


class _NoGeneratorHooks:
    """Stands where trio-asyncio keeps its async generator hooks."""

    def uninstall(self) -> None:
        """Nothing was installed."""
