"""The route to old nodes, put together for the controller: keys, dispatcher, presence, and what they report to.

Only there when ``legacy.enabled`` says so: without it no order leaves in a query and no heartbeat is believed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import trio

from shovey_trio.config.server import ServerSettings
from shovey_trio.identity.key_files import KeyPlace
from shovey_trio.identity.organizations import organizations
from shovey_trio.nursery.engine import Engine
from shovey_trio.nursery.ports import Clock
from shovey_trio.nursery.registry import NodeRegistry
from shovey_trio.nursery.settings import Timing
from shovey_trio.serf.link import SerfLink
from shovey_trio.shovey.keys import SchobKeys
from shovey_trio.shovey.kind import SchobTiming
from shovey_trio.shovey.route.bell import RING_EVENTS, SchobBell, SchobListener
from shovey_trio.shovey.route.dispatch import SchobDispatcher
from shovey_trio.shovey.route.keyring import KeptKeys, SchobKeyring
from shovey_trio.shovey.route.presence import SchobPresence
from shovey_trio.shovey.route.reports import SchobReports
from shovey_trio.shovey.route.route import SchobRoute
from shovey_trio.store.contract import AuditStore


@dataclass(frozen=True, slots=True, kw_only=True)
class ShoveyWing:
    """The wing in a controller, as far as it is there before any job is; made by ``open_shovey``."""

    link: SerfLink
    registry: NodeRegistry
    bell: SchobBell
    keyring: SchobKeyring
    route: SchobRoute
    waits: SchobTiming = field(default_factory=SchobTiming)

    def start(
        self,
        engine: Engine,
        *,
        audit: AuditStore,
        organization: str,
    ) -> SchobReports:
        """Starts what serves the route beside the engine's own helpers, and returns what old nodes report to."""
        services, supervisor, helpers = engine.services, engine.supervisor, engine.helpers
        presence = SchobPresence(
            organization=organization,
            registry=self.registry,
            bell=self.bell,
            changes=engine.doorbell.changes,
            clock=services.clock,
            timing=services.timing,
            waits=self.waits,
            runs_of_node=supervisor.runs_of_node,
        )
        helpers.start_soon(self.keyring.serve)
        helpers.start_soon(presence.serve)
        helpers.start_soon(presence.serve_members)
        helpers.start_soon(SchobListener(self.link, said=presence.said).serve)
        return SchobReports(
            services=services,
            supervisor=supervisor,
            inbox=engine.inbox,
            presence=presence,
            bell=self.bell,
            keyring=self.keyring,
            waits=self.waits,
            audit=audit,
        )


async def open_shovey(
    settings: ServerSettings,
    *,
    places: Callable[[str], KeyPlace[SchobKeys]],
    link: SerfLink | None,
    registry: NodeRegistry,
    clock: Clock,
    timing: Timing,
) -> ShoveyWing | None:
    """The wing, or None where it is not enabled.

    Args:
        settings: of the controller.
        places: where an organization's keys for old nodes are; blocks.
        link: to the serf agent; must subscribe to ``serf_events``.
        registry: of the nodes.
        clock: wall-clock time.
        timing: of all nodes.

    Raises:
        ShoveyError: a key cannot be used.
        OSError: one cannot be made.
    """
    if link is None or not settings.legacy.enabled:
        return None

    def load() -> Mapping[str, KeptKeys]:
        names = {settings.server.organization, *organizations(settings.directory)}
        found = {name: places(name) for name in sorted(names)}
        return {name: KeptKeys(place=place, keys=place.load(name)) for name, place in found.items()}

    rings = await trio.to_thread.run_sync(load)
    bell = SchobBell(link, organization=settings.server.organization, limit=settings.serf.query_size_limit)
    keyring = SchobKeyring(rings, load=load, registry=registry)
    waits = SchobTiming()
    dispatcher = SchobDispatcher(bell=bell, signer=keyring, clock=clock, timing=timing)
    route = SchobRoute(dispatcher, timing=timing, waits=waits)
    return ShoveyWing(link=link, registry=registry, bell=bell, keyring=keyring, route=route, waits=waits)


def serf_events(settings: ServerSettings) -> Sequence[str]:
    """What the wing has to hear of the gossip ring."""
    return RING_EVENTS if settings.legacy.enabled else ()
