"""Notices that the system's clock was set, and takes the new time over when nothing is in between the two.

Between the notice and the new time an order that is under way gets its answer: a copy of it with another expiry could
run a second time, so one that is not answered by then is not sent again. Nodes that were told go on taking orders.
"""

from __future__ import annotations

from typing import Final

import structlog
import trio

from shovey_trio.core.jobs.events import ClockSet
from shovey_trio.core.jobs.states import RunState
from shovey_trio.nursery.clock import SteadyClock
from shovey_trio.nursery.ports import SendClock
from shovey_trio.nursery.services import Services
from shovey_trio.nursery.supervisor import Supervisor

_log = structlog.get_logger(__name__)

#: Seconds by which the two clocks must differ for a step; less is followed without a word.
STEP: Final = 1.0
# How often it is looked for, and how long orders may take to be answered by the old time.
_LOOK_EVERY: Final = 1.0
_PATIENCE: Final = 20.0
_LOOK_AGAIN: Final = 0.2


class ClockSteps:
    """Follows the steps of the system's clock; the clock's ``frame`` counts them."""

    def __init__(self, clock: SteadyClock, services: Services, supervisor: Supervisor) -> None:
        self._clock = clock
        self._services = services
        self._supervisor = supervisor

    async def serve(self) -> None:
        """Looks for steps until cancelled."""
        while True:
            await trio.sleep(_LOOK_EVERY)
            if abs(self._clock.step()) < STEP:
                self._clock.trim()
                continue
            _log.warning("clock.stepped", seconds=round(self._clock.step(), 3))
            with trio.move_on_after(_PATIENCE):
                while self._is_an_order_under_way():  # noqa: ASYNC110 - there is nothing that tells
                    await trio.sleep(_LOOK_AGAIN)
            self._follow()

    def _is_an_order_under_way(self) -> bool:
        # What may not go out twice is no matter of nonces.
        return any(
            live.run.state is RunState.DISPATCHED and live.route.may_repeat for live in self._supervisor.all_runs()
        )

    def _follow(self) -> None:
        step = self._clock.step()
        if abs(step) < STEP:
            _log.info("clock.stepped_back", seconds=round(step, 3))
            return
        self._clock.follow()
        now = self._clock.now()
        for live in self._supervisor.all_runs():
            if live.run.accepted_at is None:
                live.post_nowait(ClockSet(nonce=self._services.new_nonce()))
        for link in self._services.links:
            link.send_nowait(SendClock(now=now))
        _log.warning("clock.followed", seconds=round(step, 3), steps=self._clock.frame)
