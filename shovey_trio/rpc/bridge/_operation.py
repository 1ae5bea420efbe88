"""One asyncio coroutine, driven from trio, that outlives the interest of the task that waits for it.

grpc's operations cannot be taken back: a read that has been handed to the C core stays pending when its waiter is
cancelled, a second one is refused, and grpc.aio reports the refusal as the end of the stream, losing messages. So a
coroutine that was started is always carried to its end, and a cancelled waiter only stops waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

import outcome
import trio
from trio_asyncio._loop import current_loop

from shovey_trio.rpc.bridge._loop import BatchedLoop

T = TypeVar("T")


class OperationCancelled(Exception):
    """The asyncio coroutine was cancelled on its own side; an ordinary error for whoever waits for it in trio."""


class Operation(Generic[T]):
    """Started by constructing it; its first step runs at once, further steps run in the asyncio loop's task."""

    __slots__ = ("_coroutine", "_loop", "_outcome", "_waiter")

    def __init__(self, loop: BatchedLoop, coroutine: Coroutine[Any, Any, T] | Generator[Any, Any, T]) -> None:
        self._loop = loop
        self._coroutine = coroutine
        self._outcome: outcome.Outcome[T] | None = None
        self._waiter: trio.lowlevel.Task | None = None
        token = current_loop.set(loop)  # the caller's task may have been started before the bridge was opened
        try:
            self._step()
        finally:
            current_loop.reset(token)

    @property
    def done(self) -> bool:
        """Whether ``wait`` would return or raise without waiting for grpc."""
        return self._outcome is not None

    async def wait(self) -> T:
        """Return or raise what the coroutine does.

        Cancellation: the coroutine goes on; ``wait`` may be called again for the same result. One waiter at a time.
        """
        await self.settled()
        return self.result()

    def result(self) -> T:
        """Return or raise what the coroutine did; once, after it has ended."""
        assert self._outcome is not None
        return self._outcome.unwrap()

    async def settled(self) -> None:
        """Return when the coroutine has ended, however it did. Cancellation: as for ``wait``."""
        if self._outcome is None:
            self._waiter = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._stop_waiting)
        else:
            await trio.lowlevel.checkpoint()

    def _stop_waiting(self, _: Callable[[], None]) -> trio.lowlevel.Abort:
        self._waiter = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _step(self, _: object = None) -> None:
        try:
            future = self._coroutine.send(None)
        except StopIteration as stop:
            self._finish(outcome.Value(stop.value))
        except asyncio.CancelledError:  # noqa: ASYNC103  # not trio's: nobody above this frame is being cancelled
            self._finish(outcome.Error(OperationCancelled()))
        except Exception as error:  # noqa: BLE001  # handed to the waiter
            self._finish(outcome.Error(error))
        else:
            if future is None:  # a bare yield: asyncio.sleep(0)
                self._loop.call_soon(self._step)
            else:
                future._asyncio_future_blocking = False
                future.add_done_callback(self._step)

    def _finish(self, result: outcome.Outcome[T]) -> None:
        self._outcome = result
        if self._waiter is not None:
            task, self._waiter = self._waiter, None
            trio.lowlevel.reschedule(task)
