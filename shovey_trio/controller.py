"""The controller, put together: everything between the settings and the open listeners.

The order of the ``async with`` blocks is the order of dependence: the store outlives the jobs, the jobs outlive the
helpers they call, and the listeners open last and close first.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import structlog
import trio

from shovey_trio import __version__
from shovey_trio.application.announcer import Announcer
from shovey_trio.application.chef_callers import StoredChefCallers
from shovey_trio.application.explain import Explain
from shovey_trio.application.identities import Identities
from shovey_trio.application.jobs import JobDefaults, Jobs
from shovey_trio.application.legacy import LegacyNodes
from shovey_trio.application.nodes import Nodes
from shovey_trio.config import ServerSettings
from shovey_trio.config_types import split_address
from shovey_trio.core.authz import POLICY
from shovey_trio.core.errors import ShoveyError
from shovey_trio.core.serf_wire import CONTROLLER_START_EVENT
from shovey_trio.identity.files import read_secret
from shovey_trio.identity.signing_keys import SigningKeyFile, SigningKeys
from shovey_trio.legacy_route import LegacyRoute, open_legacy_route
from shovey_trio.nursery.clock import WallClock
from shovey_trio.nursery.credits import ByteCredits
from shovey_trio.nursery.dispatch import Dispatcher
from shovey_trio.nursery.inbound import AgentInbox
from shovey_trio.nursery.links import Links
from shovey_trio.nursery.ports import Doorbell, SendFollow, SendKeys, Store
from shovey_trio.nursery.presence import NodePresence
from shovey_trio.nursery.recovery import take_up_jobs
from shovey_trio.nursery.registry import NodeRegistry
from shovey_trio.nursery.services import Services
from shovey_trio.nursery.settings import Bounds, Timing
from shovey_trio.nursery.supervisor import Supervisor, open_supervisor
from shovey_trio.nursery.watch import CommitHub
from shovey_trio.nursery.whitelist_asks import WhitelistAsks
from shovey_trio.rest.listener import open_rest
from shovey_trio.rest.server import HttpServer
from shovey_trio.rpc.bridge import Listener, Route, Server, ServerOptions, ServerTls, open_server
from shovey_trio.rpc.bridge.health import Health
from shovey_trio.rpc.bridge.reflection import reflection_routes
from shovey_trio.rpc.callers import Gatekeeper
from shovey_trio.rpc.errors import status_of
from shovey_trio.rpc.services.admin_service import AdminService, ServerFacts
from shovey_trio.rpc.services.agent_service import AgentService, EnrollmentService
from shovey_trio.rpc.services.call_rate import CallRate
from shovey_trio.rpc.services.job_service import JobService
from shovey_trio.rpc.services.node_service import NodeService
from shovey_trio.rpc.signer import Signer
from shovey_trio.serf.doorbell import NoDoorbell, SerfDoorbell
from shovey_trio.serf.legacy import LEGACY_EVENTS
from shovey_trio.serf.link import SerfLink, SerfSettings
from shovey_trio.store import open_store
from shovey_trio.tls import ControllerTls, ListenerTls, load_controller_tls, renew_listeners_if_due

_log = structlog.get_logger(__name__)

CONTROL = "control"
ENROLL = "enroll"
# Enrolments and renewals under way at once: each costs a signature and two commits.
_ENROLLING = 4
# The health service's name for the connection to serf.
SERF = "serf"
_HEALTH_TICK = 1.0
_RETENTION_SLICE = 20
_DAY = 86_400.0


class Controller:
    """A running controller; made by ``open_controller``."""

    def __init__(
        self,
        *,
        settings: ServerSettings,
        server: Server,
        supervisor: Supervisor,
        identities: Identities,
        links: Links,
        health: Health,
        signer: Signer,
        doorbell: Doorbell,
        registry: NodeRegistry,
        legacy: LegacyRoute | None,
        legacy_nodes: LegacyNodes | None,
        rest: HttpServer | None,
        callers: StoredChefCallers,
    ) -> None:
        self._settings = settings
        self._server = server
        self._supervisor = supervisor
        self._identities = identities
        self._links = links
        self._health = health
        self._signer = signer
        self._doorbell = doorbell
        self._registry = registry
        self._legacy = legacy
        self.legacy_nodes = legacy_nodes
        self._rest = rest
        self._callers = callers

    @property
    def control_port(self) -> int:
        return self._server.port(CONTROL)

    @property
    def enroll_port(self) -> int:
        return self._server.port(ENROLL)

    @property
    def rest_port(self) -> int | None:
        """The port of the REST shim; None when it is not served."""
        return None if self._rest is None else self._rest.port

    async def drain(self) -> None:
        """Takes no more jobs, lets agents and clients go, and returns when nobody is left or the time for it is over.

        Live jobs stay as they are; the next start takes them up.
        """
        self._supervisor.draining = True
        self._health.set_all(False)
        _log.info("controller.draining", jobs=len(self._supervisor), agents=len(self._links))
        for link in self._links:
            link.close("the controller stops")
        grace = self._settings.server.drain_timeout
        async with trio.open_nursery() as nursery:
            if self._rest is not None:
                nursery.start_soon(partial(self._rest.stop, grace=grace))
            await self._server.stop(grace=grace)

    async def reload(self) -> None:
        """Reads certificates, signing keys, users and revocations again; a file that is bad leaves the old in force."""
        try:
            tls = await trio.to_thread.run_sync(_load_tls, self._settings)
            keys = await trio.to_thread.run_sync(_load_keys, self._settings)
            await self._identities.load()
            await self._callers.load()
            await self._registry.load_new()
            if self._legacy is not None:
                await self._legacy.keyring.reload()
        except (ShoveyError, OSError) as error:
            _log.error("controller.reload_failed", error=str(error))
            return
        self._server.reload_tls(CONTROL, _server_tls(tls.control))
        self._server.reload_tls(ENROLL, _server_tls(tls.enroll))
        self._replace_keys(keys)
        _log.info("controller.reloaded")

    def _replace_keys(self, keys: SigningKeys) -> None:
        before = self._identities.key_set(keys.organization)
        published = keys.published()
        self._identities.replace_keys(keys)
        if published != before:
            # On each stream ahead of the first order that only they verify.
            for link in self._links:
                if link.organization == keys.organization:
                    link.send_nowait(SendKeys(keys=published))
        self._signer.replace({keys.organization: keys.active})
        if isinstance(self._doorbell, SerfDoorbell):
            self._doorbell.replace_key(keys.active.private_key)


@asynccontextmanager
async def open_controller(settings: ServerSettings) -> AsyncIterator[Controller]:
    """Runs a controller for the block: unfinished jobs are taken up, then the listeners open.

    Leaving the block stops at once (``Controller.drain`` before that gives callers time).

    Raises:
        ShoveyError: something needed is missing, damaged or open to others; the message names it.
        ListenError: an address cannot be listened on.
    """
    clock = WallClock()
    tls = await trio.to_thread.run_sync(_load_tls, settings)
    keys = await trio.to_thread.run_sync(_load_keys, settings)
    async with open_store(settings.store_path) as store:
        epoch = await store.next_epoch(clock.now())
        registry = NodeRegistry(store)
        await registry.load()
        links = Links()
        timing, bounds = _timing(settings), _bounds(settings)
        link = _serf_link(settings)
        doorbell: Doorbell = NoDoorbell()
        if link is not None:
            limit = settings.serf.query_size_limit
            doorbell = SerfDoorbell(
                link=link, signing_key=keys.active.private_key, epoch=epoch, clock=clock, limit=limit
            )
        signer = Signer({keys.organization: keys.active})
        hub = CommitHub(max_watchers=bounds.watchers)
        store.on_commit(hub.committed)
        dispatcher = Dispatcher(links=links, doorbell=doorbell, timing=timing)
        legacy = await open_legacy_route(settings, link=link, registry=registry, clock=clock, timing=timing)
        services = Services(
            store=store,
            links=links,
            dispatcher=dispatcher,
            signer=signer,
            hub=hub,
            clock=clock,
            epoch=epoch,
            timing=timing,
            bounds=bounds,
            legacy=None if legacy is None else legacy.dispatcher,
        )
        identities = Identities(services=services, registry=registry, authority=tls.authority, signing_keys=keys)
        await identities.load()
        health = Health()
        async with trio.open_nursery() as helpers, open_supervisor(services) as supervisor:
            presence = NodePresence(
                registry=registry,
                links=links,
                doorbell=doorbell,
                clock=clock,
                timing=timing,
                runs_of_node=supervisor.runs_of_node,
            )
            hub.on_follow_changed(lambda job_id, node, on: _tell_followed(supervisor, links, job_id, node, on))
            presence.begin()
            helpers.start_soon(dispatcher.serve)
            helpers.start_soon(presence.serve)
            helpers.start_soon(presence.serve_members)
            helpers.start_soon(_keep_health, health, store, doorbell)
            helpers.start_soon(_delete_history, store, settings)
            if link is not None:
                helpers.start_soon(link.run)
                if settings.serf.event_announce:
                    announcer = Announcer(
                        organization=settings.server.organization, store=store, announce=link.announce
                    )
                    store.on_commit(announcer.committed)
                    registry.on_presence(announcer.presence_changed)
                    helpers.start_soon(announcer.serve)
                helpers.start_soon(_name_misfits, link, doorbell, registry, settings.server.organization)
            await take_up_jobs(store, supervisor)
            jobs = Jobs(
                services=services,
                supervisor=supervisor,
                registry=registry,
                doorbell=doorbell,
                defaults=_defaults(settings),
            )
            asks = WhitelistAsks()
            explain = Explain(jobs=jobs, identities=identities, registry=registry, links=links, asks=asks)
            nodes = Nodes(services=services, supervisor=supervisor, registry=registry, doorbell=doorbell)
            inbox = AgentInbox(services=services, supervisor=supervisor, presence=presence, links=links)
            legacy_nodes = None
            if legacy is not None:
                legacy_nodes = legacy.start(
                    helpers,
                    organization=settings.server.organization,
                    services=services,
                    supervisor=supervisor,
                    inbox=inbox,
                    doorbell=doorbell,
                )
            facts = ServerFacts(
                version=__version__,
                organization=settings.server.organization,
                epoch=epoch,
                started_at=clock.now(),
                enroll_address=settings.enroll_address,
            )
            control: list[Route] = [
                *JobService(jobs, explain).routes(),
                *NodeService(nodes, identities).routes(),
                *AgentService(
                    inbox=inbox,
                    registry=registry,
                    links=links,
                    max_attached=bounds.attached,
                    identities=identities,
                    credits_=ByteCredits(bounds.output_buffer),
                    clock=clock,
                    epoch=epoch,
                    asks=asks,
                ).routes(),
                *AdminService(
                    facts=facts,
                    identities=identities,
                    nodes=nodes,
                    supervisor=supervisor,
                    doorbell=doorbell,
                    clock=clock,
                ).routes(),
                *health.routes(),
            ]
            control += reflection_routes({route.method.service for route in control})
            enrollment = EnrollmentService(
                identities=identities,
                control_address=settings.control_address,
                limiter=trio.CapacityLimiter(_ENROLLING),
                rate=CallRate(settings.limits.enroll_per_minute, clock),
            )
            enroll = [*enrollment.routes(), *health.routes()]
            _check_policy([*control, *enroll])
            listeners = [
                Listener(
                    name=CONTROL,
                    address=settings.server.control_listen,
                    routes=control,
                    tls=_server_tls(tls.control),
                ),
                Listener(
                    name=ENROLL, address=settings.server.enroll_listen, routes=enroll, tls=_server_tls(tls.enroll)
                ),
            ]
            options = ServerOptions(max_receive_bytes=settings.limits.max_message)
            callers = StoredChefCallers(store=store, clock=clock)
            async with (
                open_server(
                    listeners, authorize=Gatekeeper(identities), map_error=status_of, options=options
                ) as server,
                open_rest(settings, jobs=jobs, nodes=nodes, callers=callers, legacy=legacy_nodes, clock=clock) as rest,
            ):
                controller = Controller(
                    settings=settings,
                    server=server,
                    supervisor=supervisor,
                    identities=identities,
                    links=links,
                    health=health,
                    signer=signer,
                    doorbell=doorbell,
                    registry=registry,
                    legacy=legacy,
                    legacy_nodes=legacy_nodes,
                    rest=rest,
                    callers=callers,
                )
                if link is not None:
                    helpers.start_soon(_announce, link)
                helpers.start_soon(_renew_daily, controller)
                yield controller
            helpers.cancel_scope.cancel(reason="the controller stops")


def _load_tls(settings: ServerSettings) -> ControllerTls:
    hosts = [split_address(settings.control_address)[0], split_address(settings.enroll_address)[0]]
    renew_listeners_if_due(settings.directory, hosts=hosts, now=WallClock().now())
    return load_controller_tls(settings.directory)


def _load_keys(settings: ServerSettings) -> SigningKeys:
    organization = settings.server.organization
    return SigningKeyFile(settings.directory.signing_keys(organization)).load(organization)


def _server_tls(tls: ListenerTls) -> ServerTls:
    return ServerTls(certificate=tls.certificate, private_key=tls.private_key, client_ca=tls.client_ca)


def _timing(settings: ServerSettings) -> Timing:
    return replace(
        Timing(),
        acceptance=settings.jobs.acceptance,
        order_attempts=settings.jobs.order_attempts,
        reconnect_grace=settings.jobs.reconnect_grace,
        stream_lost_after=settings.presence.stream_lost_after,
        on_demand_fresh=settings.presence.on_demand_fresh,
    )


def _bounds(settings: ServerSettings) -> Bounds:
    limits = settings.limits
    return replace(
        Bounds(),
        live_jobs=limits.max_live_jobs,
        live_runs=limits.max_live_runs,
        watchers=limits.max_watchers,
        attached=limits.max_attached,
        output_buffer=limits.output_buffer,
    )


def _defaults(settings: ServerSettings) -> JobDefaults:
    jobs = settings.jobs
    return JobDefaults(
        run_timeout=jobs.default_run_timeout, max_run_timeout=jobs.max_run_timeout, kill_grace=jobs.kill_grace
    )


def _serf_link(settings: ServerSettings) -> SerfLink | None:
    if not settings.serf.enabled:
        return None
    host, port = split_address(settings.serf.address)
    key_file = settings.serf.auth_key_file
    auth_key = read_secret(key_file).decode().strip() if key_file else None
    events = LEGACY_EVENTS if settings.legacy.enabled else ()
    return SerfLink(SerfSettings(host=host, port=port, auth_key=auth_key, events=events))


def _tell_followed(supervisor: Supervisor, links: Links, job_id: str, node: str | None, followed: bool) -> None:
    """Tells the agents of a job's live runs to flush output often, or seldom again."""
    job = supervisor.job(job_id)
    if job is None:
        return
    for live in job.runs.values() if node is None else filter(None, [job.runs.get(node)]):
        link = None if live.run.is_terminal else links.get(live.run.organization, live.run.node)
        if link is not None:
            link.send_nowait(SendFollow(run_id=live.run.id, followed=followed))


def _check_policy(routes: Sequence[Route]) -> None:
    """Refuses to serve a method that nobody decided about."""
    forgotten = [route.method.path for route in routes if route.method.path not in POLICY]
    if forgotten:
        raise RuntimeError(f"no policy for {', '.join(forgotten)}")


async def _announce(link: SerfLink) -> None:
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


async def _name_misfits(link: SerfLink, doorbell: Doorbell, registry: NodeRegistry, organization: str) -> None:
    """Reports, once serf is there, the registered nodes that it could never ring."""
    await link.wait_connected()
    misfits = doorbell.unaddressable(organization, sorted(registry.of(organization)))
    if misfits:
        _log.warning("serf.names_do_not_fit", nodes=list(misfits))


async def _keep_health(health: Health, store: Store, doorbell: Doorbell) -> None:
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


async def _renew_daily(controller: Controller) -> None:
    """Renews the listeners' certificates in time: reloading does, and costs nothing when nothing is due."""
    while True:
        await trio.sleep(_DAY)
        await controller.reload()


async def _delete_history(store: Store, settings: ServerSettings) -> None:
    clock = WallClock()
    while True:
        now = clock.now()
        try:
            while (
                await store.delete_history(
                    jobs_before=now - settings.retention.jobs,
                    statuses_before=now - settings.retention.statuses,
                    limit=_RETENTION_SLICE,
                )
                == _RETENTION_SLICE
            ):
                await trio.lowlevel.checkpoint()
        except ShoveyError as error:
            _log.warning("retention.failed", error=error.message)
        await trio.sleep(settings.retention.sweep_every)
