"""The controller's gRPC listeners: which services are served where, with which limits, and who is let in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from functools import partial

import structlog
import trio

from shovey_trio import __version__
from shovey_trio.config.server import ServerSettings
from shovey_trio.controller.records import Records
from shovey_trio.controller.settings import CONTROL, ENROLL, server_tls
from shovey_trio.controller.use_cases import UseCases
from shovey_trio.core.errors import Unauthenticated
from shovey_trio.core.trust.authz import METHODS
from shovey_trio.identity.tls import ControllerTls
from shovey_trio.nursery.credits import ByteCredits
from shovey_trio.nursery.engine import Engine
from shovey_trio.rpc.bridge import Listener, Served, Server, ServerOptions, open_server
from shovey_trio.rpc.bridge.health import Health
from shovey_trio.rpc.bridge.reflection import serve_reflection
from shovey_trio.rpc.errors import status_of
from shovey_trio.rpc.services.admin_service import AdminService, ServerFacts
from shovey_trio.rpc.services.agent_service import AgentService, EnrollmentService
from shovey_trio.rpc.services.call_rate import CallRate
from shovey_trio.rpc.services.callers import Gatekeeper
from shovey_trio.rpc.services.job_service import JobService
from shovey_trio.rpc.services.node_service import NodeService
from shovey_trio.rpc.services.places import CallPlaces

_log = structlog.get_logger(__name__)

# Enrolments and renewals under way at once: each costs a signature and two commits.
_ENROLLING = 4


@asynccontextmanager
async def open_grpc(
    settings: ServerSettings,
    *,
    engine: Engine,
    use_cases: UseCases,
    records: Records,
    tls: ControllerTls,
    health: Health,
) -> AsyncIterator[Server]:
    """Listens for the block; whoever's certificate becomes void has no call left from that moment on.

    Raises:
        ListenError: an address cannot be listened on.
        RuntimeError: a method is served that nobody decided about.
    """
    control = _control_methods(settings, engine, use_cases, records, health)
    enroll = _enroll_methods(settings, engine, use_cases, records, health)
    _check_policy([*control, *enroll])
    server = settings.server
    gatekeeper = Gatekeeper(use_cases.identities, audit=records.audit, attempts=records.attempts)
    opened = open_server(
        [
            Listener(name=CONTROL, address=server.control_listen, serves=control, tls=server_tls(tls.control)),
            Listener(name=ENROLL, address=server.enroll_listen, serves=enroll, tls=server_tls(tls.enroll)),
        ],
        reserve=CallPlaces(
            per_caller=settings.limits.max_calls_per_caller, strangers=settings.limits.max_stranger_calls
        ),
        authorize=gatekeeper,
        map_error=gatekeeper.status_of,
        options=ServerOptions(
            max_receive_bytes=settings.limits.max_message,
            max_concurrent_streams=settings.limits.max_streams,
            max_connections=settings.limits.max_connections,
        ),
    )
    async with opened as grpc, trio.open_nursery() as nursery:
        nursery.start_soon(use_cases.identities.serve_revocations, partial(_end_calls, grpc))
        yield grpc
        nursery.cancel_scope.cancel(reason="the controller stops")


def _control_methods(
    settings: ServerSettings, engine: Engine, use_cases: UseCases, records: Records, health: Health
) -> list[Served]:
    services = engine.services
    facts = ServerFacts(
        version=__version__,
        organization=settings.server.organization,
        epoch=services.epoch,
        started_at=services.clock.now(),
        enroll_address=settings.enroll_address,
    )
    serves = [
        *JobService(use_cases.jobs, use_cases.explain).serves(),
        *NodeService(use_cases.nodes, use_cases.identities).serves(),
        *AgentService(
            inbox=engine.inbox,
            registry=engine.registry,
            links=engine.links,
            max_attached=services.bounds.attached,
            max_run_output=services.bounds.run_output,
            identities=use_cases.identities,
            credits_=ByteCredits(services.bounds.output_buffer),
            clock=services.clock,
            epoch=services.epoch,
            asks=use_cases.asks,
            audit=records.audit,
        ).serves(),
        *AdminService(
            facts=facts,
            identities=use_cases.identities,
            nodes=use_cases.nodes,
            supervisor=engine.supervisor,
            doorbell=engine.doorbell,
            clock=services.clock,
        ).serves(),
        *health.serves(),
    ]
    return [*serves, *serve_reflection({served.method.service for served in serves})]


def _enroll_methods(
    settings: ServerSettings, engine: Engine, use_cases: UseCases, records: Records, health: Health
) -> list[Served]:
    enrollment = EnrollmentService(
        identities=use_cases.identities,
        control_address=settings.control_address,
        limiter=trio.CapacityLimiter(_ENROLLING),
        rate=CallRate(settings.limits.enroll_per_minute, engine.services.clock),
        attempts=records.attempts,
    )
    return [*enrollment.serves(), *health.serves()]


def _check_policy(serves: Sequence[Served]) -> None:
    """Refuses to serve a method that nobody decided about."""
    forgotten = [served.method.path for served in serves if served.method.path not in METHODS]
    if forgotten:
        raise RuntimeError(f"no policy for {', '.join(forgotten)}")


def _end_calls(server: Server, serials: Collection[str]) -> None:
    """Ends the calls of whoever holds a certificate that is void; new ones are refused anyhow."""
    status = status_of(Unauthenticated("the certificate is revoked", cause="revoked"))
    assert status is not None  # it is an error of ours
    if ended := server.end_calls(serials, status):
        _log.info("certificates.revoked", calls_ended=ended)
