"""When Python looks for garbage in the daemon: when little is in use that it would have to look at.

Reference counts free nearly all that this program drops. Only a search for cycles finds the rest: what grpc.aio leaves
behind each call (five objects, 1 KiB) and the remains of errors. A search looks at every object that is new and alive,
some 0.5 µs each, while the main loop stands still. Left to itself Python begins one when many more objects were made
than freed, which is when a job is in flight on a thousand nodes and all of them are in use. So it is told not to, and:

* what is there once the daemon has started stays for good, and is not looked at again;
* what was made since is looked at in an idle moment in which few runs are live, or after a long wait for one;
* what has been looked at once is in use, and freed by its counts in the end; it is looked at again once a day;
* attached agents come in thousands and live long. A search after each hundred of them is short, one for all is not.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Final

import structlog
import trio
from trio.testing import wait_all_tasks_blocked  # in trio's testing namespace, but a feature of its run loop

_log = structlog.get_logger(__name__)

# Objects made and not freed that are worth a search: 10,000 calls, 10 MiB. Less would be found at the same price, which
# is what is alive: each attached agent that has spoken since has some 25 new objects, 0.25 s for 10,000 agents.
_DUE: Final = 50_000
# Live runs up to which a search is not long for their sake. The count above cannot tell: what a run had when it was
# last looked at is freed while it makes others.
_FEW: Final = 200
_LOOK_EVERY: Final = 0.25
# Seconds without a task to run that a search waits for; the one for everything, 1 s with 10,000 agents, for more.
_IDLE_FOR: Final = 0.005
_CALM_FOR: Final = 0.05
# Seconds after which a search that is due waits no longer: 50 MiB at 400 calls a second.
_PATIENCE: Final = 120.0
# Agents that have come since the last search: some 15,000 objects, 10 ms.
_PORTION: Final = 100
_FULL_EVERY: Final = 24 * 3600.0


def settle_memory() -> None:
    """Sets the rules above for this process; to be called once, when everything that lives as long as it is made."""
    gc.disable()
    gc.collect()
    gc.freeze()


async def collect_garbage(attached: Callable[[], int], live_runs: Callable[[], int]) -> None:
    """Looks for garbage by the rules above, until cancelled.

    Args:
        attached: how many agents are.
        live_runs: how many runs are live, or belong to a live job.
    """
    settled = attached()
    due_since = trio.current_time()
    full_at = due_since + _FULL_EVERY
    while True:
        await trio.sleep(_LOOK_EVERY)
        now = trio.current_time()
        settled = min(settled, attached())
        if attached() - settled >= _PORTION:
            settled = attached()
            _search()
        elif now >= full_at and live_runs() <= _FEW and await _becomes_idle(_CALM_FOR):
            full_at = now + _FULL_EVERY
            gc.unfreeze()
            _search(2)
        elif gc.get_count()[0] < _DUE:
            due_since = now
        elif now > due_since + _PATIENCE or (live_runs() <= _FEW and await _becomes_idle(_IDLE_FOR)):
            due_since = now
            _search()


async def _becomes_idle(seconds: float) -> bool:
    with trio.move_on_after(_LOOK_EVERY):
        await wait_all_tasks_blocked(seconds)
        return True
    return False


def _search(generation: int = 0) -> None:
    """Frees what is garbage among the objects of a generation, and has the others left alone from now on."""
    began = time.perf_counter()
    found = gc.collect(generation)
    gc.freeze()
    _log.debug("garbage.collected", objects=found, full=generation == 2, seconds=round(time.perf_counter() - began, 4))
