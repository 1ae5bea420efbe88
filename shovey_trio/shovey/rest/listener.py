"""The REST shim, put together from the settings."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import structlog

from shovey_trio.application.attempts import FailedAttempts
from shovey_trio.application.audit import AuditLog
from shovey_trio.application.jobs import Jobs
from shovey_trio.application.nodes import Nodes
from shovey_trio.chef.auth import Authenticator, ChefCallers
from shovey_trio.chef.callers import StoredChefCallers
from shovey_trio.chef.server import Callers, ChefServer, open_chef_server
from shovey_trio.config.server import RestSection, ServerSettings
from shovey_trio.core.errors import ConfigurationInvalid
from shovey_trio.http.connection import HttpLimits
from shovey_trio.http.messages import json_response
from shovey_trio.http.server import HttpOptions, HttpServer, open_http_server
from shovey_trio.nursery.ports import Clock
from shovey_trio.shovey.rest import openapi
from shovey_trio.shovey.rest.application import RestApplication
from shovey_trio.shovey.rest.job_routes import JobPolicy, JobRoutes
from shovey_trio.shovey.rest.key_routes import KeyRoutes
from shovey_trio.shovey.rest.node_routes import NodeRoutes
from shovey_trio.shovey.rest.routing import RestRoute
from shovey_trio.shovey.rest.senders import Senders
from shovey_trio.shovey.rest.stream_routes import StreamRoutes
from shovey_trio.shovey.route.reports import SchobReports

_log = structlog.get_logger(__name__)

# What a Chef server behind us knows better: nodes have attributes there.
_CHEFS_OWN: Final = frozenset({"nodes", "search"})


@asynccontextmanager
async def open_rest(
    settings: ServerSettings,
    *,
    jobs: Jobs,
    nodes: Nodes,
    callers: StoredChefCallers,
    reports: SchobReports | None,
    clock: Clock,
    audit: AuditLog | None = None,
    attempts: FailedAttempts | None = None,
) -> AsyncIterator[HttpServer | None]:
    """Serves the shim for the block, if it is enabled.

    Raises:
        ConfigurationInvalid: the certificate or its key cannot be used.
        OSError: the address cannot be listened on.
    """
    rest = settings.rest
    if not rest.enabled:
        yield None
        return
    await callers.load()
    organization = settings.server.organization
    options = HttpOptions(
        connections=rest.max_connections,
        connections_per_peer=rest.max_connections_per_peer,
        limits=_limits(rest),
        tls=load_tls(rest),
    )
    async with AsyncExitStack() as stack:
        known: ChefCallers = callers
        chef: ChefServer | None = None
        if settings.chef.server_url:
            opened = open_chef_server(settings.chef, organization=organization, clock=clock)
            chef = await stack.enter_async_context(opened)
            known = Callers(callers, chef)
        senders = Senders(known, reports)
        routes = shim_routes(settings, jobs=jobs, nodes=nodes, reports=reports)
        application = RestApplication(
            routes,
            Authenticator(senders, clock=clock, clock_skew=rest.clock_skew, attempts=attempts),
            audit=audit,
            organization=organization,
            known_as=settings.chef.organization,
            organization_of=senders.organization_of,
            body_limit=rest.max_body,
            body_time=rest.body_timeout,
            pass_on=None if chef is None else chef.pass_on,
            passed_areas=_CHEFS_OWN,
            documents={openapi.PATH: json_response(openapi.openapi_document(routes))},
        )
        server = await stack.enter_async_context(open_http_server(application, address=rest.listen, options=options))
        _log.info("rest.listening", address=server.address, tls=options.tls is not None, chef=settings.chef.server_url)
        yield server


def shim_routes(
    settings: ServerSettings, *, jobs: Jobs, nodes: Nodes, reports: SchobReports | None
) -> Sequence[RestRoute]:
    """All routes of the shim."""
    rest = settings.rest
    policy = JobPolicy(run_timeout=rest.default_run_timeout, cancel_wait=rest.cancel_wait)
    return (
        *JobRoutes(jobs, reports=reports, policy=policy).routes(),
        *StreamRoutes(jobs, reports=reports, hold=rest.stream_hold).routes(),
        *NodeRoutes(nodes).routes(),
        *KeyRoutes(reports).routes(),
    )


def load_tls(rest: RestSection) -> ssl.SSLContext | None:
    """What the listener presents; None for plain HTTP.

    Raises:
        ConfigurationInvalid: the certificate or its key cannot be used.
    """
    if not rest.tls_certificate:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # Old Rubies have no TLS 1.3.
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(rest.tls_certificate, rest.tls_key or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationInvalid(f"rest.tls_certificate and rest.tls_key: {error}") from error
    return context


def _limits(rest: RestSection) -> HttpLimits:
    return HttpLimits(
        head_time=rest.head_timeout,
        idle_time=rest.idle_timeout,
        write_time=rest.write_timeout,
    )
