"""The route to old nodes: the signed order itself in a serf query, and no proof of anything.

A schob does not know a start order that it had before, so this side keeps *at most once* (``route.dispatch``).
"""

from __future__ import annotations

import random

import structlog
import trio

from shovey_trio.core.errors import SerfUnavailable, ShoveyError
from shovey_trio.core.jobs.events import CancelUnproven, ConfirmReport, ForgetRun, NodeRefused, NodeUnavailable
from shovey_trio.core.jobs.model import Job, Node, Run
from shovey_trio.core.trust.orders import OrderKind
from shovey_trio.nursery.route import RunAtWork
from shovey_trio.nursery.settings import Timing
from shovey_trio.shovey.kind import KIND, SchobTiming
from shovey_trio.shovey.route.dispatch import OrderTooLarge, SchobDispatcher

_log = structlog.get_logger(__name__)


class SchobRoute:
    """Implements ``nursery.route.NodeRoute``."""

    may_repeat = False
    tells_once = True

    def __init__(self, dispatcher: SchobDispatcher, *, timing: Timing, waits: SchobTiming) -> None:
        self._dispatcher = dispatcher
        self._timing = timing
        self._waits = waits
        self.output_patience = waits.output

    def acceptance_until(self, job: Job, run: Run) -> float:
        """Counted from when the order went out, if it did."""
        if run.dispatched_at is not None:
            return run.dispatched_at + self._timing.acceptance
        return run.times_from + self._timing.acceptance + self._waits.per_target * job.run_total

    def unsupported(self, job: Job) -> str:
        return "a schob can be given nothing but the name of a command" if job.input else ""

    def way(self, node: Node) -> str | None:
        return KIND

    def not_asked(self, node: Node) -> str:
        return "a schob cannot be asked"

    def start_nowait(self, run: RunAtWork) -> bool:
        return False

    async def start(self, run: RunAtWork) -> None:
        """Sends the start order, again only to a node that serf knows not to have had it."""
        try:
            for _ in range(self._timing.order_attempts):
                delivery = await self._dispatcher.send(run, OrderKind.START)
                if delivery is None or not await delivery.is_lost_on(run.handle.run.node):
                    return
                await trio.sleep(_jittered(self._timing.ring_pause))
        except OrderTooLarge as error:
            await run.handle.post(NodeUnavailable(cause="too_large", detail=error.message))
        except SerfUnavailable as error:
            # It may have been sent, and nobody will ever tell: the node's report decides, or the deadline.
            _log.warning("legacy.maybe_sent", error=error.message)
        except ShoveyError as error:
            await run.handle.post(NodeRefused(kind=OrderKind.START, reason="serf_refused", detail=error.message))

    async def cancel(self, run: RunAtWork) -> None:
        """Sends the cancel until serf has brought it to the node, and says so when there is nothing to wait for."""
        with trio.move_on_after(self._waits.cancel + run.job.job.kill_grace):
            while True:
                try:
                    delivery = await self._dispatcher.send(run, OrderKind.CANCEL)
                    if delivery is not None and not await delivery.is_lost_on(run.handle.run.node):
                        await trio.sleep_forever()
                except ShoveyError as error:
                    _log.warning("legacy.cancel_not_sent", error=error.message)
                await trio.sleep(_jittered(self._timing.cancel_retry))
        await run.handle.post(CancelUnproven())

    async def serve(self) -> None:
        await self._dispatcher.serve()

    def tell(self, run: Run, word: ConfirmReport | ForgetRun) -> None:
        pass  # a schob forgets by itself


def _jittered(pause: float) -> float:
    return pause * random.uniform(0.5, 1.5)  # noqa: S311 - jitter, not a secret
