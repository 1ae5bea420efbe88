"""The controller's parts as its settings want them: files read, sections turned into the values that parts take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from shovey_trio.application.jobs import JobDefaults
from shovey_trio.config.server import ServerSettings
from shovey_trio.core.addresses import split_address
from shovey_trio.identity.files import check_private, read_secret
from shovey_trio.identity.key_places import KeySource
from shovey_trio.identity.organizations import organizations
from shovey_trio.identity.root_keys import KeyRing
from shovey_trio.identity.signing_keys import SigningKeys
from shovey_trio.identity.tls import ControllerTls, ListenerTls, load_controller_tls, renew_listeners_if_due
from shovey_trio.nursery.clock import WallClock
from shovey_trio.nursery.settings import Bounds, Timing
from shovey_trio.rpc.bridge import ServerTls
from shovey_trio.serf.link import SerfLink, SerfSettings
from shovey_trio.shovey.keys import LegacyKeyFile
from shovey_trio.shovey.route.bell import LEGACY_EVENTS

if TYPE_CHECKING:
    from shovey_trio.identity.key_sources import LegacyKeyDocument, VaultDocument

#: The listener with mutual TLS, and the one that serves Enroll and Renew.
CONTROL = "control"
ENROLL = "enroll"


def check_files(settings: ServerSettings) -> None:
    """Holds when keys, state and store are closed to others. Blocking.

    Raises:
        InsecureFile: one is not; the message names it with its mode.
    """
    check_private((*settings.directory.private_paths(), settings.store_path))


def load_tls(settings: ServerSettings) -> ControllerTls:
    hosts = [split_address(settings.control_address)[0], split_address(settings.enroll_address)[0]]
    renew_listeners_if_due(settings.directory, hosts=hosts, now=WallClock().now())
    return load_controller_tls(settings.directory)


def load_keys(settings: ServerSettings) -> Mapping[str, SigningKeys]:
    """The signing keys of every organization, by name; the controller's own must be among them."""
    names = {settings.server.organization, *organizations(settings.directory)}
    return {name: load_signing_keys(settings, name) for name in sorted(names)}


def load_signing_keys(settings: ServerSettings, organization: str) -> SigningKeys:
    """An organization's signing keys from where ``[secrets]`` says that they are. Blocking.

    Raises:
        ShoveyError: they are not to be had there; the message says why.
        OSError: a file of format 1 cannot be replaced.
    """
    match settings.secrets.signing_keys:
        case KeySource.ENVIRONMENT if organization == settings.server.organization:
            from shovey_trio.identity.key_sources import SIGNING_VARIABLE, EnvironmentDocument, load_signing_document

            return load_signing_document(EnvironmentDocument(SIGNING_VARIABLE), SIGNING_VARIABLE, organization)
        case KeySource.VAULT:
            from shovey_trio.identity.key_sources import load_signing_document

            document = vault_document(settings, organization, "signing")
            return load_signing_document(document, document.path, organization)
        case _:
            return KeyRing(settings.directory, organization).ensure_root(WallClock().now())


def legacy_key_place(settings: ServerSettings, organization: str) -> LegacyKeyFile | LegacyKeyDocument:
    """Where an organization's keys for old nodes are."""
    match settings.secrets.legacy_keys:
        case KeySource.ENVIRONMENT if organization == settings.server.organization:
            from shovey_trio.identity.key_sources import LEGACY_VARIABLE, EnvironmentDocument, LegacyKeyDocument

            return LegacyKeyDocument(EnvironmentDocument(LEGACY_VARIABLE), LEGACY_VARIABLE)
        case KeySource.VAULT:
            from shovey_trio.identity.key_sources import LegacyKeyDocument

            document = vault_document(settings, organization, "legacy")
            return LegacyKeyDocument(document, document.path)
        case _:
            return LegacyKeyFile(settings.directory.legacy_keys(organization))


def vault_document(settings: ServerSettings, organization: str, kind: str) -> VaultDocument:
    """The document of an organization's keys in Vault; nothing is asked yet."""
    from shovey_trio.identity.key_sources import VaultDocument, vault_at

    vault = settings.vault
    return VaultDocument(vault_at(vault.options, vault.credentials), f"{vault.path}/{organization}/{kind}")


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
