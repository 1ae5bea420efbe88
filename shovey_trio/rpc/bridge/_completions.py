"""Completions of the C core, handed out in trio: one queue, one thread that waits, one task that does the rest.

A blocking wait needs a thread, and an event through a thread costs a switch of threads and a wake-up of trio's loop.
So the thread waits for the first event only. The task then takes whatever else is ready without waiting, lets the
tasks that it woke run, and looks again, because what they started is often complete by then; only when it has found
nothing twice does the thread wait again. Under load nearly every event comes the cheap way.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

import structlog
import trio
from grpc._cython import cygrpc

from shovey_trio.observe.threads import run_in_thread

_log = structlog.get_logger(__name__)

# Events between two checkpoints: what one turn of the loop may bring to be done, some of it new calls to admit (0.3 ms
# each).
_BATCH: Final = 32
# Looks that found nothing before the thread waits again.
_PATIENCE: Final = 2
_PAST: Final = 0.0  # a deadline that makes ``poll`` return at once

_TIMEOUT: Final = cygrpc.CompletionType.queue_timeout
_SHUTDOWN: Final = cygrpc.CompletionType.queue_shutdown

# Queues whose operations did not all complete. Freeing one would wait for them, in C, with Python standing still.
_abandoned: list[Any] = []


class Completions:
    """A completion queue. The tag of each operation is the function that takes its event, in the task of ``serve``."""

    def __init__(self) -> None:
        self.queue = cygrpc.CompletionQueue()
        self._turn = threading.Lock()  # held while it is not the thread's turn
        self._turn.acquire()
        self._scope = trio.CancelScope(shield=True)
        self._first: Any = None  # the event that the thread has waited for
        self._parked: trio.lowlevel.Task | None = None
        self._drained = trio.Event()
        self.closing = False  # operations must not be started any more: the C core would end the process

    async def serve(self) -> None:
        """Hand out completions until ``aclose``. Shielded: what is to be closed in order needs them until its end."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._wait_in_thread)
                await self._hand_out()

    async def aclose(self) -> None:
        """Shut the queue down, and end ``serve``. Everything that uses the queue must have been closed before.

        Cancellation: the queue is given up; its thread stays until the process ends.
        """
        self.closing = True
        self.queue.shutdown()
        try:
            await self._drained.wait()
        finally:
            if not self._drained.is_set():
                _log.error("rpc.completions_outstanding")
                _abandoned.append(self.queue)
                self._scope.cancel(reason="the completion queue is given up")

    def hand_out_ready(self) -> int:
        """Hand out what is ready, up to ``_BATCH`` completions, and return how many those were."""
        for count in range(_BATCH):
            event = self.queue.poll(_PAST)
            if event.completion_type == _TIMEOUT:
                return count
            self._take(event)
            if self._drained.is_set():
                return count
        return _BATCH

    async def _hand_out(self) -> None:
        while not self._drained.is_set():
            self._turn.release()
            self._take(await self._first_event())
            looks = 0
            while looks < _PATIENCE and not self._drained.is_set():
                await trio.lowlevel.checkpoint()
                looks = 0 if self.hand_out_ready() else looks + 1
        self._turn.release()  # the thread shall see it as well

    def _take(self, event: Any) -> None:
        if event.completion_type == _SHUTDOWN:
            self._drained.set()
            return
        try:
            event.tag(event)
        except Exception:  # noqa: BLE001  # a defect in one call must not end all others
            _log.exception("rpc.completion_failed")

    async def _first_event(self) -> Any:
        if self._first is None:
            self._parked = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._unpark)
        event, self._first = self._first, None
        return event

    def _unpark(self, _: Callable[[], None]) -> trio.lowlevel.Abort:
        self._parked = None
        return trio.lowlevel.Abort.SUCCEEDED

    # -- the thread

    async def _wait_in_thread(self) -> None:
        limiter = trio.CapacityLimiter(1)  # for good, so none of those that come and go
        await run_in_thread(self._wait, trio.lowlevel.current_trio_token(), limiter=limiter, abandon_on_cancel=True)

    def _wait(self, token: trio.lowlevel.TrioToken) -> None:
        ended = False
        while not ended:
            self._turn.acquire()
            event = self.queue.poll(None)
            ended = event.completion_type == _SHUTDOWN
            try:
                token.run_sync_soon(self._deliver, event)
            except trio.RunFinishedError:
                return
            del event  # a call that it holds must be freed in trio's thread, and before the next wait

    def _deliver(self, event: Any) -> None:
        self._first = event
        if self._parked is not None:
            task, self._parked = self._parked, None
            trio.lowlevel.reschedule(task)
