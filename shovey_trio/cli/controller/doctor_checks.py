"""What ``shovey-trio doctor`` finds on this host: files, certificates, keys, disk, store, clock."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Final

from shovey_trio.application.restored import StoreOlder
from shovey_trio.application.restored import check_store as check_age
from shovey_trio.cli.controller.offline_store import run_with_store
from shovey_trio.config.server import ServerSettings
from shovey_trio.config.types import format_duration
from shovey_trio.controller.settings import load_signing_keys
from shovey_trio.core.addresses import split_address
from shovey_trio.core.errors import ShoveyError
from shovey_trio.core.jobs.model import Node
from shovey_trio.core.trust.key_sets import KeyState
from shovey_trio.core.trust.orders import MAX_CLOCK_SKEW
from shovey_trio.identity.audit_files import AuditFiles
from shovey_trio.identity.authority import DAY, hosts_of, listener_hosts, read_certificates, renew_at
from shovey_trio.identity.files import check_secret_directory, check_secret_file, read_public
from shovey_trio.identity.key_places import KeySource
from shovey_trio.identity.layout import ClientDirectory, DataDirectory
from shovey_trio.identity.signing_keys import SigningKeyFile
from shovey_trio.identity.tls import load_controller_tls
from shovey_trio.identity.user_certificate import read_user_certificate
from shovey_trio.store.contract import Store
from shovey_trio.store.sql.schema import HEAD
from shovey_trio.store.sqlite.schema import outdated_schema

_CA_WARNING: Final = 365 * DAY
# The store refuses to write when the disk is full; this is some hours of a busy fleet's output before that.
# Seconds that a node's clock may be off before it is worth a word, and how many nodes are named.
_SHOWN_SKEW: Final = 1.0
_NAMED: Final = 10
_DISK_WARNING: Final = 2**30
_DISK_FAILURE: Final = 64 * 2**20


class Status(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One result: what was looked at, what was found, and what to do about it."""

    check: str
    status: Status
    message: str
    advice: str = ""


def check_files(settings: ServerSettings) -> Iterator[Finding]:
    """Whether secrets are where they belong and closed to others."""
    directory = settings.directory
    secrets = [
        directory.ca_key,
        directory.control.key,
        directory.enroll.key,
        directory.signing_keys(settings.server.organization),
    ]
    if settings.serf.auth_key_file:
        secrets.append(settings.serf.auth_key_file)
    problems = [*_problems(check_secret_directory, [directory.root]), *_problems(check_secret_file, secrets)]
    for problem in problems:
        yield Finding(check="files", status=Status.FAIL, message=problem, advice=_set_up_advice(directory))
    if not problems:
        yield Finding(check="files", status=Status.OK, message=f"{len(secrets)} secret files, readable by us alone")
    store = settings.store_path
    if store.exists() and not store.is_relative_to(directory.root):
        mode = stat.S_IMODE(store.stat().st_mode)
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            yield Finding(
                check="files",
                status=Status.WARN,
                message=f"{store} has mode {mode:04o}: others can read output",
                advice=f"chmod 0600 {store}",
            )


def check_certificates(settings: ServerSettings, now: float) -> Iterator[Finding]:
    """Whether certificates load, belong together, hold long enough and have the names that are told to clients."""
    directory = settings.directory
    try:
        load_controller_tls(directory)
        authority = read_certificates(read_public(directory.ca_certificate))[0]
    except ShoveyError as exc:
        yield Finding(check="certificates", status=Status.FAIL, message=exc.message, advice=_set_up_advice(directory))
        return
    left = authority.not_valid_after_utc.timestamp() - now
    yield Finding(
        check="certificates",
        status=Status.FAIL if left <= 0 else Status.WARN if left < _CA_WARNING else Status.OK,
        message=f"CA holds until {_day(now + left)}",
        advice="plan a new CA: every node has to be enrolled again before that day" if left < _CA_WARNING else "",
    )
    for pair, address in (
        (directory.control, settings.control_address),
        (directory.enroll, settings.enroll_address),
    ):
        leaf = read_certificates(read_public(pair.certificate))[0]
        until = leaf.not_valid_after_utc.timestamp()
        name = f"{pair.stem.name} listener"
        missing = set(listener_hosts([split_address(address)[0]])) - set(hosts_of(leaf))
        if now > until:
            status, message, advice = Status.FAIL, f"expired on {_day(until)}", "start serve: it renews it"
        elif now > renew_at(leaf):
            status, message, advice = Status.WARN, f"expires on {_day(until)}", "restart serve or send it HUP"
        elif missing:
            status, message = Status.WARN, f"lacks the name {', '.join(sorted(missing))}"
            advice = "restart serve or send it HUP: it renews it with the advertised names"
        else:
            status, message, advice = Status.OK, f"holds until {_day(until)}", ""
        yield Finding(check="certificates", status=status, message=f"{name}: {message}", advice=advice)


def check_admin(settings: ServerSettings, now: float) -> Iterator[Finding]:
    """Whether the first admin's certificate, if it is still kept here, is valid and for how long."""
    admin = ClientDirectory(settings.directory.admin)
    if not admin.identity.certificate.exists():
        return
    renewal = f"shovey --config {admin.root} login renew"
    try:
        own = read_user_certificate(
            file=admin.identity.certificate, key_file=admin.identity.key, ca_file=admin.ca_certificate
        )
        own.check(now)
    except ShoveyError as exc:
        yield Finding(check="certificates", status=Status.WARN, message=f"admin: {exc.message}", advice=renewal)
        return
    due = own.is_due(now)
    yield Finding(
        check="certificates",
        status=Status.WARN if due else Status.OK,
        message=f"admin: {own.identity.label} holds until {_day(own.expires_at)}",
        advice=renewal if due else "",
    )


def check_signing_keys(settings: ServerSettings) -> Iterator[Finding]:
    """Whether orders can be signed."""
    organization = settings.server.organization
    try:
        if settings.secrets.signing_keys is KeySource.FILES:
            # Not as the daemon does: it may give an old file a root key, and a check changes nothing.
            keys = SigningKeyFile(settings.directory.signing_keys(organization)).load(organization)
        else:
            keys = load_signing_keys(settings, organization)
    except ShoveyError as exc:
        advice = _set_up_advice(settings.directory)
        if settings.secrets.signing_keys is KeySource.VAULT:
            advice = "see [vault], and try `shovey-trio vault check`"
        yield Finding(check="signing keys", status=Status.FAIL, message=exc.message, advice=advice)
        return
    retiring = [key.state for key in keys.keys.keys].count(KeyState.RETIRING)
    yield Finding(
        check="signing keys",
        status=Status.OK,
        message=f"{keys.active.key_id} active, {retiring} retiring, serial {keys.keys.serial}",
    )


def check_disk(settings: ServerSettings) -> Iterator[Finding]:
    """Whether there is room for output."""
    place = next(path for path in (settings.store_path, *settings.store_path.parents) if path.exists())
    free = shutil.disk_usage(place).free
    status = Status.FAIL if free < _DISK_FAILURE else Status.WARN if free < _DISK_WARNING else Status.OK
    yield Finding(
        check="disk",
        status=status,
        message=f"{free / 2**30:.1f} GiB free at {place}",
        advice="make room or shorten retention.jobs: without room no job is accepted"
        if status is not Status.OK
        else "",
    )


def check_store(settings: ServerSettings) -> tuple[Sequence[Finding], Sequence[Node]]:
    """Whether the store opens, and the nodes in it. An older schema is reported, not migrated: that is serve's part."""
    outdated = outdated_schema(settings.store_path)
    if outdated:
        return [
            Finding(
                check="store", status=Status.WARN, message=outdated, advice="serve will migrate it: take a copy first"
            )
        ], ()

    async def read(store: Store) -> tuple[Sequence[Node], int]:
        await check_age(store, AuditFiles(settings.directory))
        return await store.load_nodes(), len(await store.load_users())

    try:
        nodes, users = run_with_store(settings.store_path, read)
    except (ShoveyError, OSError) as exc:
        message = exc.message if isinstance(exc, ShoveyError) else str(exc)
        return [
            Finding(
                check="store",
                status=Status.FAIL,
                message=message,
                advice="" if isinstance(exc, StoreOlder) else "restore a backup; serve does not start without a store",
            )
        ], ()
    nodes = [node for node in nodes if node.organization == settings.server.organization]
    message = f"{settings.store_path.name} opens, schema {HEAD}, {len(nodes)} nodes, {users} users"
    return [Finding(check="store", status=Status.OK, message=message)], nodes


def check_clock(nodes: Sequence[Node], now: float) -> Iterator[Finding]:
    """Whether this host's clock went back: what is stored must not be later than now, but for a node's own skew."""
    ahead = max((node.last_seen_at - now for node in nodes if node.last_seen_at is not None), default=0.0)
    if ahead <= 1:
        yield Finding(check="clock", status=Status.OK, message=f"{_moment(now)}, not behind anything stored")
        return
    yield Finding(
        check="clock",
        status=Status.FAIL if ahead > MAX_CLOCK_SKEW else Status.WARN,
        message=f"{_moment(now)}, {format_duration(round(ahead))} before the last sign of a node: it went back",
        advice="set the clock (chrony, systemd-timesyncd) before serve is started: orders expire by it",
    )


def check_node_clocks(nodes: Sequence[Node]) -> Iterator[Finding]:
    """Whether the nodes' clocks agree with the controller's, as measured when each last attached."""
    skewed = [node for node in nodes if node.clock_skew is not None and abs(node.clock_skew) > _SHOWN_SKEW]
    if not skewed:
        yield Finding(check="node clocks", status=Status.OK, message="no node's clock was found to be off")
        return
    worst = max(skewed, key=lambda node: abs(node.clock_skew or 0.0))
    names = ", ".join(f"{node.name} {node.clock_skew:+.1f} s" for node in skewed[:_NAMED])
    yield Finding(
        check="node clocks",
        status=Status.FAIL if abs(worst.clock_skew or 0.0) > MAX_CLOCK_SKEW else Status.WARN,
        message=f"{len(skewed)} off this controller's: {names}{' …' if len(skewed) > _NAMED else ''}",
        advice=f"set their clocks; beyond {format_duration(MAX_CLOCK_SKEW)} a doorbell does not wake a node",
    )


def _problems(check: Callable[[Path], None], paths: Sequence[Path]) -> Iterator[str]:
    for path in paths:
        try:
            check(path)
        except ShoveyError as exc:
            yield exc.message


def _set_up_advice(directory: DataDirectory) -> str:
    return "" if directory.configuration.exists() else f"shovey-trio init --data-dir {directory.root}"


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, tz=UTC).date().isoformat()


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
