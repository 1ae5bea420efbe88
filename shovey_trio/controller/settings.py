"""The controller's parts as its settings want them: files read, sections turned into the values that parts take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from shovey_trio.application.job_request import JobDefaults
from shovey_trio.config.server import ServerSettings
from shovey_trio.core.addresses import split_address
from shovey_trio.identity.files import check_private, read_secret
from shovey_trio.identity.key_files import K, KeyFile, KeyPlace
from shovey_trio.identity.key_kinds import KeyKind
from shovey_trio.identity.key_places import SIGNING_VARIABLE, KeySource
from shovey_trio.identity.organizations import organizations
from shovey_trio.identity.root_keys import KeyRing
from shovey_trio.identity.signing_keys import SigningKeyFile, SigningKeys
from shovey_trio.identity.tls import ControllerTls, ListenerTls, load_controller_tls, renew_listeners_if_due
from shovey_trio.nursery.clock import WallClock
from shovey_trio.nursery.settings import Bounds, Timing
from shovey_trio.rpc.bridge import ServerTls
from shovey_trio.serf.link import SerfLink, SerfSettings

if TYPE_CHECKING:
    from shovey_trio.identity.key_sources import KeyDocument, VaultDocument

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
    document = _elsewhere(settings, "signing", SIGNING_VARIABLE, SigningKeyFile, organization)
    if document is not None:
        return document.load(organization)
    return KeyRing(settings.directory, organization).ensure_root(WallClock().now())


def key_place(settings: ServerSettings, kind: KeyKind[K], organization: str) -> KeyPlace[K]:
    """Where an organization's keys of a kind are; files are made where there are none. Blocking.

    Raises:
        OSError: a file cannot be made.
    """
    document = _elsewhere(settings, kind.word, kind.variable, kind.file, organization)
    return document or kind.ensure(settings.directory, organization, now=WallClock().now())


def _elsewhere(
    settings: ServerSettings, kind: str, variable: str, file: type[KeyFile[K]], organization: str
) -> KeyDocument[K] | None:
    """Keys that are not in files, or None."""
    match settings.secrets.source(kind):
        case KeySource.ENVIRONMENT if organization == settings.server.organization:
            from shovey_trio.identity.key_sources import EnvironmentDocument, KeyDocument

            return KeyDocument(file, EnvironmentDocument(variable), variable)
        case KeySource.VAULT:
            from shovey_trio.identity.key_sources import KeyDocument

            document = vault_document(settings, organization, kind)
            return KeyDocument(file, document, document.path)
        case _:
            return None


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
        watchers_per_caller=limits.max_watchers_per_caller,
        attached=limits.max_attached,
        output_buffer=limits.output_buffer,
        run_output=limits.max_run_output,
    )


def job_defaults_of(settings: ServerSettings) -> JobDefaults:
    jobs = settings.jobs
    return JobDefaults(
        run_timeout=jobs.default_run_timeout, max_run_timeout=jobs.max_run_timeout, kill_grace=jobs.kill_grace
    )


def serf_link_of(settings: ServerSettings, events: Sequence[str]) -> SerfLink | None:
    """The link to the serf agent, with these events of its ring for whoever listens; None where serf is not used."""
    if not settings.serf.enabled:
        return None
    host, port = split_address(settings.serf.address)
    key_file = settings.serf.auth_key_file
    auth_key = read_secret(key_file).decode().strip() if key_file else None
    return SerfLink(SerfSettings(host=host, port=port, auth_key=auth_key, events=tuple(events)))
