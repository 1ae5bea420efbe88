"""When Python looks for garbage in the daemon: often where it is cheap, and everywhere only when nobody is waiting.

A collection of the oldest generation looks at every object there is: 1,000 attached agents are some 0.2 s in which the
main loop stands still, and with Python's default thresholds a job on all of them brings several. Nearly all garbage of
this program is freed by reference counts or dies young; what is left are the remains of streams and tasks that lived
long. So:

* what is there once the daemon has started stays for good, and is not looked at again;
* young objects are collected in larger, rarer portions: most have died by then, so that the few left are all that is
  looked at;
* the older generations are collected when the loop is idle – ``collect_when_idle`` – and by Python itself only if that
  moment does not come for very long. A fan-out is over by then, and with it what would have been looked at.
"""

from __future__ import annotations

import gc
from typing import Final

import structlog
import trio
from trio.testing import wait_all_tasks_blocked  # in trio's testing namespace, but a feature of its run loop

_log = structlog.get_logger(__name__)

# Objects that make a collection of the youngest generation (some 10 to 30 ms when all of them live: a fan-out),
# collections of it that make Python collect the middle one, and collections of that which make it collect the oldest.
_THRESHOLDS: Final = (20_000, 50, 500)
# Collections of the youngest generation from which the middle one is worth its pause, and so on for the oldest.
_MIDDLE_DUE: Final = 3
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
    """Collects the older generations when that is due and no other task has anything to do, until cancelled."""
    while True:
        await trio.sleep(_LOOK_EVERY)
        _, young, middle = gc.get_count()
        if young >= _MIDDLE_DUE or middle >= _DUE:
            await wait_all_tasks_blocked(_IDLE_FOR)
            began = trio.current_time()
            generation = 2 if middle >= _DUE else 1
            found = gc.collect(generation)
            took = round(trio.current_time() - began, 4)
            _log.debug("garbage.collected", generation=generation, objects=found, seconds=took)
