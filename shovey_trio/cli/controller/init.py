"""``shovey-trio init``: sets up a data directory."""

from __future__ import annotations

import time
from pathlib import Path

import click

from shovey_trio.application.members import certify_user
from shovey_trio.cli.controller.offline_store import host_actor, run_with_store
from shovey_trio.config.reference import render_configuration
from shovey_trio.config.server import DEFAULT_DATA_DIR, ServerSettings, load_server_settings
from shovey_trio.controller.wings import KEY_KINDS
from shovey_trio.core.addresses import join_address, split_address
from shovey_trio.core.errors import InvalidRequest
from shovey_trio.identity.bootstrap import FirstAdmin, SetupOptions, initialize

_WILDCARD = "0.0.0.0"  # noqa: S104 - only with --host, by which the operator asks for it
_HEADER = """\
Settings of the shovey-trio controller, written by `shovey-trio init`.
What is commented out is the default. Every setting: docs/configuration.md. Check with: shovey-trio doctor
Relative paths are relative to this file, so the directory can be moved as a whole.
"""


@click.command()
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, resolve_path=True),
    default=DEFAULT_DATA_DIR,
    show_default=True,
    help="Directory to set up.",
)
@click.option("--organization", default="default", show_default=True, help="Name of the organization.")
@click.option("--admin", default="admin", show_default=True, help="Name of the first admin.")
@click.option(
    "--host",
    "hosts",
    multiple=True,
    help="Name or address by which nodes and clients reach this host; the first one is told to them. Without it, the "
    "controller listens on loopback only.",
)
@click.option("--control-listen", metavar="HOST:PORT", help="Listener with mutual TLS.")
@click.option("--enroll-listen", metavar="HOST:PORT", help="Listener for Enroll and Renew.")
def init(
    *,
    data_dir: Path,
    organization: str,
    admin: str,
    hosts: tuple[str, ...],
    control_listen: str | None,
    enroll_listen: str | None,
) -> None:
    """Set up a data directory: CA, certificates, signing key, store, first admin, configuration.

    Nothing is ever overwritten: where a set-up is, init says what is there and exits with 5.
    """
    # Everything is checked, as the daemon will check it, before anything is written.
    for host in hosts:
        _check_host(host)
    values = _choose(organization, hosts, control_listen, enroll_listen)
    settings = load_server_settings(None, environ={}, overrides=tuple(values.items()))
    options = SetupOptions(
        key_kinds=KEY_KINDS.values(),
        organization=organization,
        admin=admin,
        hosts=hosts,
        control_address=settings.control_address,
        enroll_address=settings.enroll_address,
        configuration=render_configuration(ServerSettings, {**values, "server.data_dir": "."}, header=_HEADER),
        now=time.time(),
    )
    directory = initialize(data_dir, options, _populate)
    click.echo(f"Set up organization {organization} in {directory.root}:")
    for path, what in (
        (directory.configuration, "settings, with every default"),
        (directory.ca_certificate, "what nodes and clients trust"),
        (directory.ca_key, "issues certificates: keep a copy off this host"),
        (directory.signing_keys(organization), "signs orders"),
        (directory.store, "jobs, runs, output, nodes, users"),
        (directory.admin, f"client directory of user/{admin}"),
    ):
        click.echo(f"  {path.relative_to(directory.root).as_posix():22} {what}")
    click.echo(f"\nRun it:     shovey-trio serve --config {directory.configuration}")
    click.echo(f"Use it:     export SHOVEY_CONFIG={directory.admin}; shovey node list")
    click.echo(f"Add a node: shovey-trio node token NAME --config {directory.configuration}")


def _choose(
    organization: str, hosts: tuple[str, ...], control_listen: str | None, enroll_listen: str | None
) -> dict[str, str]:
    values = {"server.organization": organization}
    settings = ServerSettings()
    defaults = settings.server
    if hosts:
        # Not served until it is enabled; then where the other listeners are.
        values["rest.listen"] = join_address(_WILDCARD, split_address(settings.rest.listen)[1])
    for name, given, default in (
        ("control", control_listen, defaults.control_listen),
        ("enroll", enroll_listen, defaults.enroll_listen),
    ):
        # Whoever names a host wants to be reached by it, hence the wildcard.
        reachable = join_address(_WILDCARD, split_address(default)[1]) if hosts else default
        values[f"server.{name}_listen"] = given or reachable
    server = load_server_settings(None, environ={}, overrides=tuple(values.items())).server
    for name, listen in (("control", server.control_listen), ("enroll", server.enroll_listen)):
        port = split_address(listen)[1]
        if hosts and port:
            values[f"server.advertise_{name}"] = join_address(hosts[0], port)
    return values


def _check_host(host: str) -> None:
    if not host.isascii() or not host or any(character in host for character in " /[]"):
        raise InvalidRequest(f"host {host!r}: expected a DNS name (in ASCII) or an address, without port", field="host")


def _populate(path: Path, admin: FirstAdmin) -> None:
    actor = host_actor(admin.user.organization)
    run_with_store(
        path, lambda store: certify_user(store, actor, admin.user.name, admin.user.role, admin.certificate), create=True
    )
