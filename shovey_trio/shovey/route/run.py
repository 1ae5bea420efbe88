"""What a run does for a node that has no stream: start and cancel orders through the legacy dispatcher.

Both are run beside the run's own task, in its nursery, and end with it.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import structlog
import trio

from shovey_trio.core.errors import SerfUnavailable, ShoveyError
from shovey_trio.core.jobs.events import BY_DEADLINE, LegacyCancelOver, NodeRefused, NodeUnavailable, OrderSent
from shovey_trio.core.jobs.model import Job, Route
from shovey_trio.core.jobs.run_machine import handle
from shovey_trio.core.jobs.states import RunState
from shovey_trio.core.trust.orders import OrderKind
from shovey_trio.nursery.handles import RunHandle
from shovey_trio.nursery.services import Services
from shovey_trio.shovey.protocol.wire import DEFAULT_TIME_SLEW
from shovey_trio.shovey.route.dispatch import LegacyDispatcher, LegacyOrder, OrderTooLarge

_log = structlog.get_logger(__name__)
_TO_BE_SENT = (RunState.PENDING, RunState.DISPATCHED)


async def send_legacy_start(
    handle_: RunHandle, job: Job, services: Services, write: Callable[[], Awaitable[None]]
) -> None:
    """Sends the start order, again only to a node that serf knows not to have had it; to be cancelled by its answer.

    Args:
        handle_: the run.
        job: its job.
        services: shared by all runs.
        write: makes the run as it is durable.
    """
    dispatcher = services.legacy
    if dispatcher is None:
        await handle_.post(NodeUnavailable(cause="no_route", detail="old nodes are not enabled on this controller"))
        return

    async def going_out(key_id: str) -> bool:
        run = handle_.run
        if run.state not in _TO_BE_SENT or run.cancelling:
            return False
        now = services.clock.now()
        sent = OrderSent(route=Route.LEGACY, agent_instance="", expires_at=now + DEFAULT_TIME_SLEW, key_id=key_id)
        handle_.run = handle(run, sent, now).run
        handle_.signed_with = key_id
        await write()
        return handle_.run.state in _TO_BE_SENT and not handle_.run.cancelling

    try:
        await _send_start(dispatcher, handle_, job, services, going_out)
    except OrderTooLarge as error:
        await handle_.post(NodeUnavailable(cause="too_large", detail=error.message))
    except SerfUnavailable as error:
        # It may have been sent, and nobody will ever tell: the node's report decides, or the deadline.
        _log.warning("legacy.maybe_sent", error=error.message)
    except ShoveyError as error:
        await handle_.post(NodeRefused(kind=OrderKind.START, reason="serf_refused", detail=error.message))


async def send_legacy_cancel(handle_: RunHandle, job: Job, services: Services) -> None:
    """Sends the cancel order until serf has brought it to the node, and says so when there is nothing to wait for.

    A run that the controller's own deadline has cancelled stays what it is: its node is silent, and that is followed up
    like any silence.
    """
    timing = services.timing

    async def going_out(_: str) -> bool:
        await trio.lowlevel.checkpoint()
        return not handle_.run.is_terminal

    order = LegacyOrder(job=job, node=handle_.run.node, kind=OrderKind.CANCEL, going_out=going_out)
    with trio.move_on_after(timing.legacy_cancel + job.kill_grace):
        while services.legacy is not None:
            try:
                delivery = await services.legacy.send(order)
                if delivery is not None and not await delivery.is_lost_on(order.node):
                    await trio.sleep_forever()
            except ShoveyError as error:
                _log.warning("legacy.cancel_not_sent", error=error.message)
            await trio.sleep(_jittered(timing.cancel_retry))
        await trio.sleep_forever()
    if handle_.run.cancel_reason != BY_DEADLINE:
        await handle_.post(LegacyCancelOver())


async def _send_start(
    dispatcher: LegacyDispatcher,
    handle_: RunHandle,
    job: Job,
    services: Services,
    going_out: Callable[[str], Awaitable[bool]],
) -> None:
    order = LegacyOrder(job=job, node=handle_.run.node, kind=OrderKind.START, going_out=going_out)
    for _ in range(services.timing.order_attempts):
        delivery = await dispatcher.send(order)
        if delivery is None or not await delivery.is_lost_on(order.node):
            return
        await trio.sleep(_jittered(services.timing.ring_pause))


def _jittered(pause: float) -> float:
    return pause * random.uniform(0.5, 1.5)  # noqa: S311 - jitter, not a secret
