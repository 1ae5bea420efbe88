"""Notices when the main loop was kept from other tasks for too long, and says so in the log.

A task that sleeps for a moment, again and again, and looks how late it is woken: that is how long every other task had
to wait too, whoever was the cause – a long step, a long queue of short ones, a collection of garbage, a busy machine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

import structlog
import trio

_log = structlog.get_logger(__name__)

#: Seconds above which a stall is logged; for benchmarks, which want to see smaller ones.
STALL_VARIABLE: Final = "SHOVEY_TRIO_LOG_STALLS"
_DEFAULT: Final = 0.25


async def watch_loop(threshold: float) -> None:
    """Logs ``loop.stalled`` for every stall longer than ``threshold`` seconds, until cancelled.

    What is logged may be too short by up to half of the threshold, never too long.
    """
    pause = threshold / 2
    while True:
        due = trio.current_time() + pause
        await trio.sleep_until(due)
        late = trio.current_time() - due
        if late >= threshold:
            _log.warning("loop.stalled", seconds=round(late, 4))


def stall_threshold(environ: Mapping[str, str] = os.environ) -> float:
    """The threshold for ``watch_loop``: of the environment when it is a number above 0 there, else 0.25 s."""
    try:
        asked = float(environ.get(STALL_VARIABLE, ""))
    except ValueError:
        return _DEFAULT
    return asked if asked > 0 else _DEFAULT
