"""``shovey-trio serve``: one ``trio.run`` around the controller, and signals.

TERM and INT drain (a second one stops at once); HUP reloads certificates, keys, users and revocations.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncIterator

import structlog
import trio

from shovey_trio import __version__
from shovey_trio.config.server import ServerSettings
from shovey_trio.controller.composition import Controller, open_controller
from shovey_trio.controller.garbage import collect_garbage, settle_memory
from shovey_trio.controller.ports import check_listeners
from shovey_trio.core.errors import ShoveyError
from shovey_trio.observe.logs import configure_logging
from shovey_trio.observe.loop_watch import stall_threshold, watch_loop
from shovey_trio.observe.systemd import notify
from shovey_trio.rpc.bridge import ListenError

_log = structlog.get_logger(__name__)

# Seconds for which a busy thread may keep Python from the others (Python's default: 5 ms). The loop lets Python go with
# every message it sends, and would wait that long to have it back while the store's writer encodes a commit.
_SWITCH_INTERVAL = 0.001


def run(settings: ServerSettings, *, restored: bool = False, trust_clock: bool = False) -> None:
    """Runs the controller until it is told to stop; ``restored`` and ``trust_clock`` as for ``open_controller``.

    Raises:
        ShoveyError: it cannot start; the message says why.
    """
    configure_logging(level=settings.log.level, format_=settings.log.format)
    check_listeners(settings)
    sys.setswitchinterval(_SWITCH_INTERVAL)
    try:
        trio.run(serve, settings, restored, trust_clock)
    except BaseExceptionGroup as group:
        # One cause that somebody can act on is worth one line. The trace of all else is had here or never.
        single = _only_leaf(group)
        if isinstance(single, ShoveyError | ListenError | OSError | KeyboardInterrupt):
            raise single from None
        _log.exception("controller.crashed")
        raise


async def serve(settings: ServerSettings, restored: bool = False, trust_clock: bool = False) -> None:
    """Serves until TERM or INT; then drains and returns."""
    async with trio.open_nursery() as helpers:
        helpers.start_soon(watch_loop, stall_threshold())
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            opened = open_controller(settings, restored=restored, trust_clock=trust_clock)
            async with opened as controller, trio.open_nursery() as nursery:
                settle_memory()
                nursery.start_soon(collect_garbage, controller.attached, controller.live_runs)
                _log.info(
                    "controller.ready",
                    version=__version__,
                    organization=settings.server.organization,
                    control_port=controller.control_port,
                    enroll_port=controller.enroll_port,
                )
                notify("READY=1")
                await _until_told(signals, controller)
                notify("STOPPING=1")
                nursery.start_soon(_stop_on_second, signals, nursery.cancel_scope)
                await controller.drain()
                nursery.cancel_scope.cancel(reason="drained")
            _log.info("controller.stopped")
        helpers.cancel_scope.cancel(reason="the controller has stopped")


async def _until_told(signals: AsyncIterator[int], controller: Controller) -> None:
    async for number in signals:
        if number != signal.SIGHUP:
            return
        await controller.reload()


async def _stop_on_second(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for number in signals:
        if number != signal.SIGHUP:
            scope.cancel(reason="told to stop twice")


def _only_leaf(group: BaseExceptionGroup[BaseException]) -> BaseException | None:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        if len(error.exceptions) != 1:
            return None
        error = error.exceptions[0]
    return error
