"""When Python looks for garbage in the daemon: often where it is cheap, and everywhere only when nobody is waiting.

A collection of the oldest generation looks at every object there is: 1,000 attached agents are some 0.2 s in which the
main loop stands still, and with Python's default thresholds a job on all of them brings several. Nearly all garbage of
this program is freed by reference counts or dies young; what is left are the remains of streams and tasks that lived
long. So:

* what is there once the daemon has started stays for good, and is not looked at again;
* young objects are collected in larger, rarer portions (a millisecond each);
* the oldest generation is collected when the loop is idle – ``collect_when_idle`` – and by Python itself only if that
  moment does not come for very long.
"""

from __future__ import annotations

import gc
from typing import Final

import structlog
import trio
from trio.testing import wait_all_tasks_blocked  # in trio's testing namespace, but a feature of its run loop

_log = structlog.get_logger(__name__)

# Objects that make a collection of the youngest generation, collections of it that make one of the middle one (up to
# 100,000 objects, some 10 ms), and collections of that which make Python collect the oldest.
_THRESHOLDS: Final = (10_000, 10, 500)
# Collections of the middle generation since the last full one from which a full one is worth its pause.
_DUE: Final = 20
_LOOK_EVERY: Final = 5.0
# Seconds that no task was ready to run for; shorter than the pause between two tasks that only tick.
_IDLE_FOR: Final = 0.005


def settle_memory() -> None:
    """Sets the rules above for this process; to be called once, when everything that lives as long as it is made."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)


async def collect_when_idle() -> None:
    """Collects all generations when a collection is due and no other task has had anything to do, until cancelled."""
    while True:
        await trio.sleep(_LOOK_EVERY)
        *_, middle = gc.get_count()
        if middle >= _DUE:
            await wait_all_tasks_blocked(_IDLE_FOR)
            began = trio.current_time()
            found = gc.collect()
            _log.debug("garbage.collected", objects=found, seconds=round(trio.current_time() - began, 4))
