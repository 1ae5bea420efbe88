"""The controller's parts as its settings want them: files read, sections turned into the values that parts take."""

from __future__ import annotations

from dataclasses import replace

from shovey_trio.application.jobs import JobDefaults
from shovey_trio.config import ServerSettings
from shovey_trio.config_types import split_address
from shovey_trio.identity.files import read_secret
from shovey_trio.identity.signing_keys import SigningKeyFile, SigningKeys
from shovey_trio.nursery.clock import WallClock
from shovey_trio.nursery.settings import Bounds, Timing
from shovey_trio.rpc.bridge import ServerTls
from shovey_trio.serf.legacy import LEGACY_EVENTS
from shovey_trio.serf.link import SerfLink, SerfSettings
from shovey_trio.tls import ControllerTls, ListenerTls, load_controller_tls, renew_listeners_if_due


def load_tls(settings: ServerSettings) -> ControllerTls:
    hosts = [split_address(settings.control_address)[0], split_address(settings.enroll_address)[0]]
    renew_listeners_if_due(settings.directory, hosts=hosts, now=WallClock().now())
    return load_controller_tls(settings.directory)


def load_keys(settings: ServerSettings) -> SigningKeys:
    organization = settings.server.organization
    return SigningKeyFile(settings.directory.signing_keys(organization)).load(organization)


def server_tls(tls: ListenerTls) -> ServerTls:
    return ServerTls(certificate=tls.certificate, private_key=tls.private_key, client_ca=tls.client_ca)


def timing_of(settings: ServerSettings) -> Timing:
    return replace(
        Timing(),
        acceptance=settings.jobs.acceptance,
        order_attempts=settings.jobs.order_attempts,
        reconnect_grace=settings.jobs.reconnect_grace,
        stream_lost_after=settings.presence.stream_lost_after,
        on_demand_fresh=settings.presence.on_demand_fresh,
    )


def bounds_of(settings: ServerSettings) -> Bounds:
    limits = settings.limits
    return replace(
        Bounds(),
        live_jobs=limits.max_live_jobs,
        live_runs=limits.max_live_runs,
        watchers=limits.max_watchers,
        attached=limits.max_attached,
        output_buffer=limits.output_buffer,
    )


def job_defaults_of(settings: ServerSettings) -> JobDefaults:
    jobs = settings.jobs
    return JobDefaults(
        run_timeout=jobs.default_run_timeout, max_run_timeout=jobs.max_run_timeout, kill_grace=jobs.kill_grace
    )


def serf_link_of(settings: ServerSettings) -> SerfLink | None:
    if not settings.serf.enabled:
        return None
    host, port = split_address(settings.serf.address)
    key_file = settings.serf.auth_key_file
    auth_key = read_secret(key_file).decode().strip() if key_file else None
    events = LEGACY_EVENTS if settings.legacy.enabled else ()
    return SerfLink(SerfSettings(host=host, port=port, auth_key=auth_key, events=events))
