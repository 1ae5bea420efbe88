"""Work in a thread, also while the machine has none to give: then it waits for one, and says so.

Where no process or thread can be started for a while (``RLIMIT_NPROC``, ``pids.max``, a full process table), Python
raises a bare ``RuntimeError`` that would end whatever nursery it comes up in.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

import structlog
import trio

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")

# What ``threading`` says when the system refuses a thread.
_REFUSED: Final = "can't start new thread"
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 2.0


def is_refused_thread(error: BaseException) -> bool:
    """Whether an error means that the system gave no thread."""
    return isinstance(error, RuntimeError) and str(error) == _REFUSED


async def run_in_thread(
    work: Callable[..., _T],
    *args: object,
    limiter: trio.CapacityLimiter | None = None,
    name: str | None = None,
    abandon_on_cancel: bool = False,
) -> _T:
    """As ``trio.to_thread.run_sync``, but waits where there is no thread to be had; the work is done once.

    Cancellation: waiting for a thread or the limiter is cancelled at once; work that has begun is waited for, unless it
    may be abandoned.
    """
    begun = False

    def begin() -> _T:
        nonlocal begun
        begun = True
        return work(*args)

    pause = _FIRST_PAUSE
    while True:
        try:
            return await trio.to_thread.run_sync(
                begin, limiter=limiter, thread_name=name, abandon_on_cancel=abandon_on_cancel
            )
        except RuntimeError as error:
            if begun or not is_refused_thread(error):
                raise
        _log.warning("thread.refused", work=_name(work), retry_in=pause)
        await trio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _name(work: Callable[..., object]) -> str:
    inner = work.func if isinstance(work, partial) else work
    return getattr(inner, "__qualname__", repr(inner))
