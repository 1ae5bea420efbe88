"""The controller, put together: everything between the settings and the open listeners.

The order of the ``async with`` blocks is the order of dependence: the store outlives the jobs, the jobs outlive the
helpers they call, and the listeners open last and close first.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from functools import partial

import structlog
import trio

from shovey_trio import __version__
from shovey_trio.application.announcer import Announcer
from shovey_trio.application.attempts import FailedAttempts
from shovey_trio.application.audit import AuditLog
from shovey_trio.application.audit_anchor import open_anchor
from shovey_trio.application.explain import Explain
from shovey_trio.application.identities import Identities
from shovey_trio.application.jobs import Jobs
from shovey_trio.application.nodes import Nodes
from shovey_trio.application.organization_keys import OrganizationKeys
from shovey_trio.chef.callers import StoredChefCallers
from shovey_trio.config.server import ServerSettings
from shovey_trio.controller.file_watch import marks, reload_on_change
from shovey_trio.controller.housekeeping import KeyNews, announce, delete_history, keep_health, name_misfits
from shovey_trio.controller.reload import Reload
from shovey_trio.controller.settings import (
    CONTROL,
    ENROLL,
    backend_of,
    bounds_of,
    check_files,
    job_defaults_of,
    load_keys,
    load_tls,
    serf_link_of,
    server_tls,
    timing_of,
)
from shovey_trio.core.audit.records import AuditAction
from shovey_trio.core.errors import Unauthenticated
from shovey_trio.core.trust.authz import POLICY
from shovey_trio.http.server import HttpServer
from shovey_trio.identity.audit_files import AuditFiles
from shovey_trio.identity.key_places import KeySource
from shovey_trio.nursery.clock import WallClock
from shovey_trio.nursery.credits import ByteCredits
from shovey_trio.nursery.dispatch import Dispatcher
from shovey_trio.nursery.inbound import AgentInbox
from shovey_trio.nursery.links import Links
from shovey_trio.nursery.ports import Doorbell, SendFollow
from shovey_trio.nursery.presence import NodePresence
from shovey_trio.nursery.recovery import take_up_jobs
from shovey_trio.nursery.registry import NodeRegistry
from shovey_trio.nursery.services import Services
from shovey_trio.nursery.supervisor import Supervisor, open_supervisor
from shovey_trio.nursery.watch import CommitHub
from shovey_trio.nursery.whitelist_asks import WhitelistAsks
from shovey_trio.rpc.bridge import Listener, Route, Server, ServerOptions, open_server
from shovey_trio.rpc.bridge.health import Health
from shovey_trio.rpc.bridge.reflection import reflection_routes
from shovey_trio.rpc.errors import status_of
from shovey_trio.rpc.services.admin_service import AdminService, ServerFacts
from shovey_trio.rpc.services.agent_service import AgentService, EnrollmentService
from shovey_trio.rpc.services.call_rate import CallRate
from shovey_trio.rpc.services.callers import Gatekeeper
from shovey_trio.rpc.services.job_service import JobService
from shovey_trio.rpc.services.node_service import NodeService
from shovey_trio.rpc.signer import Signer
from shovey_trio.serf.doorbell import NoDoorbell, SerfDoorbell
from shovey_trio.shovey.opening import open_legacy_route
from shovey_trio.shovey.rest.listener import open_rest
from shovey_trio.shovey.route.reports import LegacyNodes
from shovey_trio.store.sqlite.files import open_store

_log = structlog.get_logger(__name__)

# Enrolments and renewals under way at once: each costs a signature and two commits.
_ENROLLING = 4
# Seconds for the last records of the audit log, and its signed head.
_LAST_RECORDS = 5.0
_DAY = 86_400.0


class Controller:
    """A running controller; made by ``open_controller``."""

    def __init__(
        self,
        *,
        settings: ServerSettings,
        server: Server,
        supervisor: Supervisor,
        links: Links,
        health: Health,
        legacy_nodes: LegacyNodes | None,
        rest: HttpServer | None,
        reload: Reload,
    ) -> None:
        self._settings = settings
        self._server = server
        self._supervisor = supervisor
        self._links = links
        self._health = health
        self.legacy_nodes = legacy_nodes
        self._rest = rest
        self._reload = reload

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

    def attached(self) -> int:
        """How many agents are attached."""
        return len(self._links)

    def live_runs(self) -> int:
        """How many runs there are in live jobs; ended ones of theirs count."""
        return self._supervisor.live_runs

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
        """Reads certificates, keys, users, nodes and revocations again; what is bad leaves the old of it in force."""
        await self._reload()


@asynccontextmanager
async def open_controller(settings: ServerSettings) -> AsyncIterator[Controller]:
    """Runs a controller for the block: unfinished jobs are taken up, then the listeners open.

    Leaving the block stops at once (``Controller.drain`` before that gives callers time).

    Raises:
        ShoveyError: something needed is missing, damaged or open to others; the message names it.
        ListenError: an address cannot be listened on.
    """
    clock = WallClock()
    await trio.to_thread.run_sync(check_files, settings)
    tls = await trio.to_thread.run_sync(load_tls, settings)
    seen = await trio.to_thread.run_sync(marks, settings.directory)
    keys = OrganizationKeys(await trio.to_thread.run_sync(load_keys, settings))
    async with open_store(settings.store_path) as store:
        epoch = await store.next_epoch(clock.now())
        audit = AuditLog(store=store, clock=clock, organization=settings.server.organization)
        anchor = await open_anchor(store=store, file=AuditFiles(settings.directory), clock=clock)
        for organization in keys.active():
            await audit.keys_changed(keys.published(organization), AuditAction.CONTROLLER_STARTED, epoch=epoch)
        attempts = FailedAttempts(per_minute=settings.limits.failed_auth_per_minute, audit=audit, clock=clock)
        registry = NodeRegistry(store)
        await registry.load()
        links = Links()
        timing, bounds = timing_of(settings), bounds_of(settings)
        link = serf_link_of(settings)
        doorbell: Doorbell = NoDoorbell()
        if link is not None:
            limit = settings.serf.query_size_limit
            doorbell = SerfDoorbell(link=link, signing_key=keys.for_doorbells, epoch=epoch, clock=clock, limit=limit)
        signer = Signer(keys.active())
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
        identities = Identities(
            services=services, registry=registry, authority=tls.authority, ca_certificates=tls.ca_pem, keys=keys
        )
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
            helpers.start_soon(keep_health, health, store, doorbell)
            helpers.start_soon(delete_history, store, settings)
            helpers.start_soon(audit.serve)
            helpers.start_soon(anchor.serve)
            if link is not None:
                helpers.start_soon(link.run)
                if settings.serf.event_announce:
                    announcer = Announcer(
                        organization=settings.server.organization, store=store, announce=link.announce
                    )
                    store.on_commit(announcer.committed)
                    registry.on_presence(announcer.presence_changed)
                    helpers.start_soon(announcer.serve)
                helpers.start_soon(name_misfits, link, doorbell, registry, settings.server.organization)
            await take_up_jobs(store, supervisor)
            jobs = Jobs(
                services=services,
                supervisor=supervisor,
                registry=registry,
                doorbell=doorbell,
                defaults=job_defaults_of(settings),
            )
            asks = WhitelistAsks()
            explain = Explain(jobs=jobs, identities=identities, registry=registry, links=links, asks=asks)
            nodes = Nodes(services=services, supervisor=supervisor, registry=registry, doorbell=doorbell)
            inbox = AgentInbox(services=services, supervisor=supervisor, presence=presence, links=links)
            inbox.on_foreign(audit.note_foreign_run)
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
                    audit=audit,
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
                attempts=attempts,
            )
            enroll = [*enrollment.routes(), *health.routes()]
            _check_policy([*control, *enroll])
            listeners = [
                Listener(
                    name=CONTROL,
                    address=settings.server.control_listen,
                    routes=control,
                    tls=server_tls(tls.control),
                ),
                Listener(name=ENROLL, address=settings.server.enroll_listen, routes=enroll, tls=server_tls(tls.enroll)),
            ]
            gatekeeper = Gatekeeper(identities, audit=audit, attempts=attempts)
            options = ServerOptions(
                max_receive_bytes=settings.limits.max_message,
                max_concurrent_streams=settings.limits.max_streams,
                max_connections=settings.limits.max_connections,
            )
            callers = StoredChefCallers(store=store, clock=clock)
            async with (
                open_server(
                    listeners,
                    authorize=gatekeeper,
                    map_error=gatekeeper.status_of,
                    options=options,
                    backend=backend_of(settings),
                ) as server,
                open_rest(
                    settings,
                    jobs=jobs,
                    nodes=nodes,
                    callers=callers,
                    legacy=legacy_nodes,
                    clock=clock,
                    audit=audit,
                    attempts=attempts,
                ) as rest,
            ):
                identities.on_revoked(partial(_end_calls, server))
                news = KeyNews(link)
                reload = Reload(
                    settings=settings,
                    server=server,
                    identities=identities,
                    keys=keys,
                    signer=signer,
                    links=links,
                    callers=callers,
                    nodes=nodes,
                    legacy=legacy,
                    keys_changed=news.tell,
                    audit=audit,
                )
                helpers.start_soon(partial(reload_on_change, settings.directory, reload, seen=seen))
                helpers.start_soon(news.serve)
                if settings.secrets.signing_keys is KeySource.VAULT:
                    helpers.start_soon(reload.keys_again, settings.vault.refresh)
                controller = Controller(
                    settings=settings,
                    server=server,
                    supervisor=supervisor,
                    links=links,
                    health=health,
                    legacy_nodes=legacy_nodes,
                    rest=rest,
                    reload=reload,
                )
                if link is not None:
                    helpers.start_soon(announce, link)
                helpers.start_soon(_renew_daily, controller)
                yield controller
            helpers.cancel_scope.cancel(reason="the controller stops")
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _LAST_RECORDS):
            await audit.close()
            await anchor.sign()


def _end_calls(server: Server, serials: Collection[str]) -> None:
    """Whoever holds a certificate that is void has no stream from this moment on; new calls are refused anyhow."""
    status = status_of(Unauthenticated("the certificate is revoked", cause="revoked"))
    assert status is not None  # it is an error of ours
    if ended := server.end_calls(serials, status):
        _log.info("certificates.revoked", calls_ended=ended)


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


async def _renew_daily(controller: Controller) -> None:
    """Renews the listeners' certificates in time: reloading does, and costs nothing when nothing is due."""
    while True:
        await trio.sleep(_DAY)
        await controller.reload()
