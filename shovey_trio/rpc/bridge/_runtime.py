"""The one asyncio loop of a ``trio.run``, shared by every server and channel in it.

grpc.aio wants a single loop per process. The first ``open_runtime`` of a run starts it in a system task, the last one
to leave ends it, in whatever order servers and channels come and go. A system task and not a child of the first
opener: that opener may leave first, and its nursery would then wait for strangers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, TypeVar

import grpc.aio
import trio
from trio_asyncio._loop import current_loop

from shovey_trio.rpc.bridge._loop import BatchedLoop
from shovey_trio.rpc.bridge._operation import Operation

T = TypeVar("T")

# Seconds that leftover asyncio tasks get to unwind when the loop ends; they only have to notice their cancellation.
_UNWIND_DEADLINE: Final = 2.0


class Runtime:
    """The loop, and the two ways to use it from a trio task."""

    def __init__(self) -> None:
        self.loop = BatchedLoop()
        self.users = 0
        self.ready = trio.Event()
        self.closing = trio.Event()
        self.closed = trio.Event()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Make the loop the running one for synchronous asyncio code in the block."""
        token = current_loop.set(self.loop)
        try:
            yield
        finally:
            current_loop.reset(token)

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run ``coroutine`` as an asyncio task. Cancellation: the task goes on, only the waiting ends."""
        return await self.start(coroutine).wait()

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Operation[T]:
        """Start ``coroutine`` as an asyncio task, for what needs a current task (``asyncio.wait_for``)."""
        return Operation(self.loop, asyncio.Task(coroutine, loop=self.loop).__await__())

    async def serve(self) -> None:
        """Run the loop until ``closing`` is set; the body of the system task."""
        current_loop.set(self.loop)
        try:
            async with trio.open_nursery() as main, trio.open_nursery() as io:
                io.cancel_scope.shield = True  # the loop ends in order, also when the whole run is cancelled
                await self.loop._main_loop_init(io)
                await main.start(self.loop._main_loop)
                grpc.aio.init_grpc_aio()
                self.ready.set()
                try:
                    await self.closing.wait()
                finally:
                    with trio.CancelScope(shield=True, deadline=trio.current_time() + _UNWIND_DEADLINE):
                        await self._unwind()
                    grpc.aio.shutdown_grpc_aio()
                    io.cancel_scope.cancel(reason="the last server or channel of the run has closed")
                    with trio.CancelScope(shield=True, deadline=trio.current_time() + _UNWIND_DEADLINE):
                        await self.loop._main_loop_exit()
            self.loop.close()
        finally:
            self.closed.set()

    async def _unwind(self) -> None:
        while leftovers := asyncio.all_tasks(self.loop):
            for task in leftovers:
                task.cancel()
            await trio.lowlevel.checkpoint()


_runtime: trio.lowlevel.RunVar[Runtime | None] = trio.lowlevel.RunVar("shovey_trio_rpc_runtime", default=None)


@asynccontextmanager
async def open_runtime() -> AsyncIterator[Runtime]:
    """Hold the run's asyncio loop open for the block."""
    while (runtime := _runtime.get()) is not None and runtime.closing.is_set():
        await runtime.closed.wait()
        if _runtime.get() is runtime:  # nobody who waited too was faster
            _runtime.set(None)
    if runtime is None:
        runtime = Runtime()
        _runtime.set(runtime)
        trio.lowlevel.spawn_system_task(runtime.serve, name="shovey_trio.rpc.bridge loop")
    runtime.users += 1
    try:
        await runtime.ready.wait()
        yield runtime
    finally:
        runtime.users -= 1
        if runtime.users == 0:
            runtime.closing.set()
            # Bounded by the two deadlines in ``serve``.
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 3 * _UNWIND_DEADLINE):
                await runtime.closed.wait()
