"""The controller, put together: everything between the settings and the open listeners.

``open_controller`` reads like a table of contents. Its order is the order of dependence: the store outlives the jobs,
the jobs outlive what they call, and the listeners open last and close first.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial

import structlog
import trio

from shovey_trio.application.organization_keys import OrganizationKeys
from shovey_trio.application.restored import accept_restore, check_store, sign_anew
from shovey_trio.chef.callers import StoredChefCallers
from shovey_trio.config.server import ServerSettings
from shovey_trio.controller.file_watch import Marks, marks, reload_on_change
from shovey_trio.controller.grpc_door import open_grpc
from shovey_trio.controller.housekeeping import (
    BELIEVED_AHEAD,
    KeyNews,
    announce,
    keep_health,
    name_misfits,
    serve_retention,
)
from shovey_trio.controller.records import Records, open_records
from shovey_trio.controller.reload import Reload
from shovey_trio.controller.ring import open_ring
from shovey_trio.controller.settings import (
    CONTROL,
    ENROLL,
    bounds_of,
    check_files,
    key_place,
    load_keys,
    load_tls,
    timing_of,
)
from shovey_trio.controller.use_cases import UseCases, make_use_cases
from shovey_trio.http.server import HttpServer
from shovey_trio.identity.audit_files import AuditFiles
from shovey_trio.identity.key_places import KeySource
from shovey_trio.nursery.clock import SteadyClock, WallClock
from shovey_trio.nursery.clock_steps import ClockSteps
from shovey_trio.nursery.engine import open_engine
from shovey_trio.nursery.links import Links
from shovey_trio.nursery.ports import Clock
from shovey_trio.nursery.presence import NodePresence
from shovey_trio.nursery.registry import NodeRegistry
from shovey_trio.nursery.route import Routes
from shovey_trio.nursery.supervisor import Supervisor
from shovey_trio.routes.stream import StreamRoute
from shovey_trio.rpc.bridge import Server
from shovey_trio.rpc.bridge.health import Health
from shovey_trio.rpc.signer import ActiveKeySigner
from shovey_trio.shovey.keys import SCHOB_KEYS
from shovey_trio.shovey.kind import KIND
from shovey_trio.shovey.opening import open_shovey, serf_events
from shovey_trio.shovey.rest.listener import open_rest
from shovey_trio.shovey.route.reports import SchobReports
from shovey_trio.store.contract import Store
from shovey_trio.store.opening import open_store

_log = structlog.get_logger(__name__)
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
        presence: NodePresence,
        health: Health,
        rest: HttpServer | None,
        reload: Reload,
    ) -> None:
        self._settings = settings
        self._server = server
        self._supervisor = supervisor
        self._links = links
        self._presence = presence
        self._health = health
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
        self._presence.hold()
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
async def open_controller(
    settings: ServerSettings, *, restored: bool = False, trust_clock: bool = False
) -> AsyncIterator[Controller]:
    """Runs a controller for the block: unfinished jobs are taken up, then the listeners open.

    Leaving the block stops at once (``Controller.drain`` before that gives callers time).

    Args:
        settings: of this controller.
        restored: somebody says that the store is an older copy that was put back; see ``application.restored``.
        trust_clock: somebody says that this host's clock is right, however far it is ahead of what is stored.

    Raises:
        ShoveyError: something needed is missing, damaged or open to others; the message names it.
        ListenError: an address cannot be listened on.
    """
    clock, wall = SteadyClock(), WallClock()
    await trio.to_thread.run_sync(check_files, settings)
    tls = await trio.to_thread.run_sync(load_tls, settings)
    seen = await trio.to_thread.run_sync(marks, settings.directory)
    keys = OrganizationKeys(await trio.to_thread.run_sync(load_keys, settings))
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        store = await enter(_open_store(settings, clock, restored=restored, trust_clock=trust_clock))
        epoch = await store.next_epoch(clock.now())
        records = await enter(open_records(settings, store=store, keys=keys, clock=clock, epoch=epoch))
        ring = await enter(
            open_ring(settings, store=store, keys=keys, clock=wall, epoch=epoch, events=serf_events(settings))
        )
        registry = NodeRegistry(store, None if ring.announcer is None else ring.announcer.presence_changed)
        await registry.load()
        timing = timing_of(settings)
        shovey = await open_shovey(
            settings,
            place=partial(key_place, settings, SCHOB_KEYS),
            link=ring.link,
            registry=registry,
            clock=clock,
            timing=timing,
        )
        signer, links = ActiveKeySigner(keys.active()), Links()
        stream = StreamRoute(links=links, doorbell=ring.doorbell, signer=signer, timing=timing)
        engine = await enter(
            open_engine(
                store,
                registry=registry,
                links=links,
                routes=Routes(agents=stream, others={} if shovey is None else {KIND: shovey.route}),
                doorbell=ring.doorbell,
                clock=clock,
                epoch=epoch,
                timing=timing,
                bounds=bounds_of(settings),
                foreign=records.audit.note_foreign_run,
            )
        )
        reports = None
        if shovey is not None:
            reports = shovey.start(engine, audit=store)
        await engine.take_up_jobs()
        steps = ClockSteps(clock, engine.services, engine.supervisor)
        use_cases = await make_use_cases(settings, store=store, engine=engine, tls=tls, keys=keys)
        health = Health()
        callers = StoredChefCallers(store=store, clock=clock)
        server = await enter(
            open_grpc(settings, engine=engine, use_cases=use_cases, records=records, tls=tls, health=health)
        )
        rest = await enter(_open_rest(settings, use_cases, callers, reports, records, clock=wall))
        news = KeyNews(ring.link)
        reload = Reload(
            settings=settings,
            server=server,
            identities=use_cases.identities,
            keys=keys,
            signer=signer,
            links=engine.links,
            callers=callers,
            nodes=use_cases.nodes,
            more={} if shovey is None else {"legacy keys": shovey.keyring.load},
            keys_changed=news.tell,
            audit=records.audit,
        )
        helpers = await enter(trio.open_nursery())
        helpers.start_soon(steps.serve)
        helpers.start_soon(keep_health, health, store, ring.doorbell)
        helpers.start_soon(serve_retention, store, settings, clock)
        _keep_current(helpers, settings, reload, news, seen)
        if ring.link is not None:
            helpers.start_soon(name_misfits, ring.link, ring.doorbell, registry, settings.server.organization)
            helpers.start_soon(announce, ring.link)
        yield Controller(
            settings=settings,
            server=server,
            supervisor=engine.supervisor,
            links=engine.links,
            presence=engine.presence,
            health=health,
            rest=rest,
            reload=reload,
        )
        helpers.cancel_scope.cancel(reason="the controller stops")


@asynccontextmanager
async def _open_store(
    settings: ServerSettings, clock: Clock, *, restored: bool, trust_clock: bool
) -> AsyncIterator[Store]:
    # Beside a signed head of its log there was a store: a new one in its place would have forgotten everything.
    is_first = not settings.directory.audit_head.exists()
    async with open_store(settings.store_path, create=is_first) as store:
        # Before anything is written by this clock.
        await store.believe_clock(clock.now(), at_most_ahead=math.inf if trust_clock else BELIEVED_AHEAD)
        await _check_age(settings, store, clock, restored=restored)
        yield store


def _open_rest(
    settings: ServerSettings,
    use_cases: UseCases,
    callers: StoredChefCallers,
    reports: SchobReports | None,
    records: Records,
    *,
    clock: Clock,
) -> AbstractAsyncContextManager[HttpServer | None]:
    return open_rest(
        settings,
        jobs=use_cases.jobs,
        nodes=use_cases.nodes,
        callers=callers,
        reports=reports,
        clock=clock,
        audit=records.audit,
        attempts=records.attempts,
    )


def _keep_current(helpers: trio.Nursery, settings: ServerSettings, reload: Reload, news: KeyNews, seen: Marks) -> None:
    """Starts what notices that files, certificates and keys are others than before."""
    helpers.start_soon(partial(reload_on_change, settings.directory, reload, seen=seen))
    helpers.start_soon(_renew_daily, reload)
    helpers.start_soon(news.serve)
    if settings.secrets.signing_keys is KeySource.VAULT:
        helpers.start_soon(reload.keys_again, settings.vault.refresh)


async def _check_age(settings: ServerSettings, store: Store, clock: Clock, *, restored: bool) -> None:
    files = AuditFiles(settings.directory)
    if restored:
        organization = settings.server.organization
        done = await accept_restore(store, files, clock=clock, organization=organization, principal="controller")
        await sign_anew(store, files, clock=clock)
        _log.warning("store.restored", unknown_runs=done.runs, rights_kept=done.rights_kept)
    await check_store(store, files)


async def _renew_daily(reload: Reload) -> None:
    """Renews the listeners' certificates in time: reloading does, and costs nothing when nothing is due."""
    while True:
        await trio.sleep(_DAY)
        await reload()
