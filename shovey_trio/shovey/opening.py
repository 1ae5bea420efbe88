"""The route to old nodes, put together for the controller: keys, dispatcher, presence, and what they report to.

Only there when ``legacy.enabled`` says so: without it no order leaves in a query and no heartbeat is believed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import trio

from shovey_trio.config.server import ServerSettings
from shovey_trio.controller.settings import legacy_key_place
from shovey_trio.identity.organizations import organizations
from shovey_trio.nursery.engine import Engine
from shovey_trio.nursery.ports import Clock
from shovey_trio.nursery.registry import NodeRegistry
from shovey_trio.nursery.settings import Timing
from shovey_trio.serf.link import SerfLink
from shovey_trio.shovey.keys import LegacyKeyFile
from shovey_trio.shovey.kind import SchobTiming
from shovey_trio.shovey.route.bell import LegacyListener, SerfLegacyBell
from shovey_trio.shovey.route.dispatch import LegacyDispatcher
from shovey_trio.shovey.route.keyring import LegacyKeyring, LegacyRing
from shovey_trio.shovey.route.presence import LegacyPresence
from shovey_trio.shovey.route.reports import LegacyNodes
from shovey_trio.shovey.route.route import SchobRoute


@dataclass(frozen=True, slots=True, kw_only=True)
class LegacyRoute:
    """The parts that exist before any job does; made by ``open_legacy_route``."""

    link: SerfLink
    registry: NodeRegistry
    bell: SerfLegacyBell
    keyring: LegacyKeyring
    route: SchobRoute
    waits: SchobTiming = field(default_factory=SchobTiming)

    def start(
        self,
        engine: Engine,
        *,
        organization: str,
    ) -> LegacyNodes:
        """Starts what serves the route beside the engine's own helpers, and returns what old nodes report to."""
        services, supervisor, helpers = engine.services, engine.supervisor, engine.helpers
        presence = LegacyPresence(
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
        helpers.start_soon(LegacyListener(self.link, said=presence.said).serve)
        return LegacyNodes(
            services=services,
            supervisor=supervisor,
            inbox=engine.inbox,
            presence=presence,
            bell=self.bell,
            keyring=self.keyring,
            waits=self.waits,
        )


async def open_legacy_route(
    settings: ServerSettings, *, link: SerfLink | None, registry: NodeRegistry, clock: Clock, timing: Timing
) -> LegacyRoute | None:
    """The route, or None where it is not enabled. An organization without a key for it gets one.

    Raises:
        ShoveyError: the key cannot be used.
        OSError: it cannot be made.
    """
    if link is None or not settings.legacy.enabled:
        return None

    def load() -> Mapping[str, LegacyRing]:
        names = {settings.server.organization, *organizations(settings.directory)}
        return {name: _ring(settings, name, clock.now()) for name in sorted(names)}

    rings = await trio.to_thread.run_sync(load)
    bell = SerfLegacyBell(link, organization=settings.server.organization, limit=settings.serf.query_size_limit)
    keyring = LegacyKeyring(rings, load=load, registry=registry)
    dispatcher = LegacyDispatcher(bell=bell, signer=keyring, clock=clock, timing=timing)
    waits = SchobTiming()
    return LegacyRoute(
        link=link,
        registry=registry,
        bell=bell,
        keyring=keyring,
        route=SchobRoute(dispatcher, timing=timing, waits=waits),
        waits=waits,
    )


def _ring(settings: ServerSettings, organization: str, now: float) -> LegacyRing:
    place = legacy_key_place(settings, organization)
    if isinstance(place, LegacyKeyFile):
        return LegacyRing(file=place, keys=place.ensure(organization, now=now))
    return LegacyRing(file=place, keys=place.load(organization))
