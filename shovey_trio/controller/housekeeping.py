"""What the controller does by itself, beside its jobs: health, retention, and a word to serf at its start."""

from __future__ import annotations

import contextlib

import structlog
import trio

from shovey_trio.config.server import ServerSettings
from shovey_trio.core.errors import ShoveyError
from shovey_trio.core.serf.wire import CONTROLLER_START_EVENT
from shovey_trio.nursery.clock import WallClock
from shovey_trio.nursery.ports import Clock, Doorbell
from shovey_trio.nursery.registry import NodeRegistry
from shovey_trio.rpc.bridge.health import Health
from shovey_trio.serf.link import SerfLink
from shovey_trio.store.contract import Housekeeping

_log = structlog.get_logger(__name__)

# The health service's name for the connection to serf.
SERF = "serf"
_HEALTH_TICK = 1.0
_RETENTION_SLICE = 20
#: Seconds by which a clock may have gone on while no controller ran, before history is deleted by it.
BELIEVED_AHEAD = 86_400.0


async def announce(link: SerfLink) -> None:
    """Says on the gossip ring that a controller has started; agents that wait may call at once."""
    while True:
        try:
            await link.wait_connected()
            name = link.snapshot().node_name or ""
            await link.announce(CONTROLLER_START_EVENT, name.encode())
        except ShoveyError as error:
            _log.warning("serf.announce_failed", error=error.message)
            await trio.sleep(_HEALTH_TICK)
        else:
            return


class KeyNews:
    """Says on the gossip ring that there are other signing keys, in the words of a controller that has started.

    Who is attached was told on its stream. On-demand agents call because of it, and are told then: until they have
    called, they know doorbells by the old keys alone, and a revoked one is no secret's loss to them.
    """

    def __init__(self, link: SerfLink | None) -> None:
        self._link = link
        self._news = trio.Event()

    def tell(self) -> None:
        """Has the news told; nobody waits for it."""
        self._news.set()

    async def serve(self) -> None:
        """Tells news until cancelled."""
        while True:
            await self._news.wait()
            self._news = trio.Event()
            if self._link is not None:
                await announce(self._link)


async def name_misfits(link: SerfLink, doorbell: Doorbell, registry: NodeRegistry, organization: str) -> None:
    """Reports, once serf is there, the registered nodes that it could never ring."""
    await link.wait_connected()
    misfits = doorbell.unaddressable(organization, sorted(registry.of(organization)))
    if misfits:
        _log.warning("serf.names_do_not_fit", nodes=list(misfits))


async def keep_health(health: Health, store: Housekeeping, doorbell: Doorbell) -> None:
    """NOT_SERVING while the store cannot write. Serf being away is no reason, streams carry on without it.

    Serf has a health of its own, as service ``serf``, where it is used.
    """
    told: dict[str, bool] = {"": True}
    clock = WallClock()
    while True:
        if store.failure:
            # Nobody else may have anything to write, and then nobody would ever find out that it works again.
            with contextlib.suppress(ShoveyError):
                await store.probe(clock.now())
        serf = doorbell.status()
        now = {"": not store.failure} | ({SERF: serf.connected} if serf.configured else {})
        # Only what changes: a drain has said NOT_SERVING for good.
        for service in [service for service in now if told.get(service) is not now[service]]:
            health.set_serving(service, now[service])
            _log.warning(
                "health.changed",
                service=service,
                serving=now[service],
                error=serf.last_error if service == SERF else store.failure,
            )
        told = now
        await trio.sleep(_HEALTH_TICK)


async def serve_retention(store: Housekeeping, settings: ServerSettings, clock: Clock) -> None:
    """Deletes old history again and again, until cancelled."""
    while True:
        try:
            await delete_history(store, settings, clock.now())
        except ShoveyError as error:
            _log.warning("retention.failed", error=error.message)
        await trio.sleep(settings.retention.sweep_every)


async def delete_history(store: Housekeeping, settings: ServerSettings, now: float) -> None:
    """Deletes what is too old at a time; nothing if the time itself is hard to believe.

    Raises:
        StoreUnavailable: it cannot be deleted now.
    """
    retention = settings.retention
    if not await store.believe_clock(now, at_most_ahead=BELIEVED_AHEAD + retention.sweep_every):
        _log.warning(
            "retention.paused",
            why="this host's clock is more than a day ahead of the last time that history was looked after",
            advice="set the clock, or start once with `shovey-trio serve --trust-clock` if it is right",
        )
        return
    while (  # noqa: ASYNC110 - it deletes a slice each time, and lets others in between
        await store.delete_history(
            jobs_before=now - retention.jobs, statuses_before=now - retention.statuses, limit=_RETENTION_SLICE
        )
        == _RETENTION_SLICE
    ):
        await trio.lowlevel.checkpoint()
    await store.prune_audit(before=now - retention.audit, now=now, organization=settings.server.organization)
