"""Writing what a task has decided, however long the store is away."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import structlog
import trio

from shovey_trio.core.errors import StoreUnavailable

if TYPE_CHECKING:
    from shovey_trio.core.jobs.model import Run
    from shovey_trio.nursery.services import Services

_log = structlog.get_logger(__name__)
_FIRST_PAUSE = 0.1


async def write_latest(run: Callable[[], Run], services: Services, *, passed: Sequence[Run] = ()) -> None:
    """Makes a run durable, with the states it ``passed`` on its way; ``run`` gives it as it is when it is written.

    Raises:
        StoreCorrupt: final; the daemon has to stop.
    """

    async def write() -> None:
        await services.store.write_run(run(), passed=passed)

    await until_stored(write, longest_pause=services.timing.store_retry)


async def until_stored(write: Callable[[], Awaitable[None]], *, longest_pause: float) -> None:
    """Calls ``write`` until the store takes it, with growing pauses.

    A run or job cannot go on without its state being durable, and it cannot fail for the store's sake either: the
    node's truth does not change because a disk is full. Health shows NOT_SERVING meanwhile.

    Args:
        write: makes and awaits the write anew each time, so that it writes the latest value.
        longest_pause: seconds.

    Raises:
        StoreCorrupt: final; the daemon has to stop.
    """
    pause = _FIRST_PAUSE
    while True:
        try:
            await write()
        except StoreUnavailable as error:
            _log.warning("store.unavailable", error=str(error), retry_in=pause)
            await trio.sleep(pause)
            pause = min(pause * 2, longest_pause)
        else:
            return
