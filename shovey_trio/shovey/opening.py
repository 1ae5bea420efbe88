"""The route to old nodes, put together for the controller: keys, dispatcher, presence, and what they report to.

Only there when ``legacy.enabled`` says so: without it no order leaves in a query and no heartbeat is believed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
from shovey_trio.shovey.route.keyring import SchobKeyring
from shovey_trio.shovey.route.presence import SchobPresence
from shovey_trio.shovey.route.reports import SchobReports
from shovey_trio.shovey.route.route import SchobRoute
from shovey_trio.store.contract import AuditStore


class ShoveyWing:
    """The wing in a controller.

    Args:
        link: to the serf agent; must subscribe to ``RING_EVENTS``.
        organization: the controller's own, whose nodes may have plain names in serf.
        limit: ``query_size_limit`` of that agent.
        keyring: with the keys loaded.
        registry: of the nodes.
        clock: wall-clock time.
        timing: of all nodes.
    """

    def __init__(
        self,
        link: SerfLink,
        *,
        organization: str,
        limit: int,
        keyring: SchobKeyring,
        registry: NodeRegistry,
        clock: Clock,
        timing: Timing,
    ) -> None:
        self._link = link
        self._organization = organization
        self._registry = registry
        self._bell = SchobBell(link, organization=organization, limit=limit)
        self._waits = SchobTiming()
        self.keyring = keyring
        dispatcher = SchobDispatcher(bell=self._bell, signer=keyring, clock=clock, timing=timing)
        self.route = SchobRoute(dispatcher, timing=timing, waits=self._waits)

    def start(self, engine: Engine, *, audit: AuditStore) -> SchobReports:
        """Starts what listens to old nodes beside the engine's own helpers, and returns what they report to."""
        services, supervisor, helpers = engine.services, engine.supervisor, engine.helpers
        presence = SchobPresence(
            organization=self._organization,
            registry=self._registry,
            bell=self._bell,
            changes=engine.doorbell.changes,
            clock=services.clock,
            timing=services.timing,
            waits=self._waits,
            runs_of_node=supervisor.runs_of_node,
        )
        helpers.start_soon(self.keyring.serve)
        helpers.start_soon(presence.serve)
        helpers.start_soon(presence.serve_members)
        helpers.start_soon(SchobListener(self._link, said=presence.said).serve)
        return SchobReports(
            services=services,
            supervisor=supervisor,
            inbox=engine.inbox,
            presence=presence,
            bell=self._bell,
            registry=self._registry,
            keyring=self.keyring,
            waits=self._waits,
            audit=audit,
        )


async def open_shovey(
    settings: ServerSettings,
    *,
    place: Callable[[str], KeyPlace[SchobKeys]],
    link: SerfLink | None,
    registry: NodeRegistry,
    clock: Clock,
    timing: Timing,
) -> ShoveyWing | None:
    """The wing, or None where it is not enabled; ``place`` says where an organization's keys for it are, and blocks.

    Raises:
        ShoveyError: a key cannot be used.
        OSError: one cannot be made.
    """
    own = settings.server.organization
    if link is None or not settings.legacy.enabled:
        return None
    keyring = SchobKeyring(
        lambda: {name: place(name) for name in sorted({own, *organizations(settings.directory)})}, registry=registry
    )
    await keyring.load()
    limit = settings.serf.query_size_limit
    return ShoveyWing(
        link, organization=own, limit=limit, keyring=keyring, registry=registry, clock=clock, timing=timing
    )


def serf_events(settings: ServerSettings) -> Sequence[str]:
    """What the wing has to hear of the gossip ring."""
    return RING_EVENTS if settings.legacy.enabled else ()
