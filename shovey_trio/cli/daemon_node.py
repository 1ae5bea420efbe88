"""``shovey-trio node``: enrolment of nodes, through the store of the controller's host."""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime
from typing import TextIO

import click
from cryptography.hazmat.primitives.serialization import Encoding

from shovey_trio.application.chef_callers import ChefPrincipals
from shovey_trio.cli.daemon_chef_keys import add_key_commands
from shovey_trio.cli.daemon_options import with_settings
from shovey_trio.cli.offline_store import run_with_store
from shovey_trio.config import ServerSettings
from shovey_trio.config_types import format_duration, parse_duration
from shovey_trio.core.chef_principals import ChefPrincipalKind
from shovey_trio.core.enrollment import (
    DEFAULT_TOKEN_LIFETIME,
    MAX_TOKEN_LIFETIME,
    SECRET_BYTES,
    JoinTicket,
    encode_join,
    token_digest,
)
from shovey_trio.core.errors import InvalidRequest
from shovey_trio.core.model import LinkMode, Node
from shovey_trio.identity.authority import read_certificates
from shovey_trio.identity.files import check_secret_directory, read_public
from shovey_trio.identity.names import node_identity
from shovey_trio.nursery.clock import WallClock
from shovey_trio.nursery.ports import Store


@click.group()
def node() -> None:
    """Enrolment of nodes, on the controller's host; the daemon may be running or not."""


def lifetime(_ctx: click.Context, _param: click.Parameter, value: str) -> float:
    """Click's view of ``parse_duration``, within what a token may have."""
    try:
        seconds = parse_duration(value)
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from exc
    if not 0 < seconds <= MAX_TOKEN_LIFETIME:
        raise click.BadParameter(f"expected more than 0 and at most {format_duration(MAX_TOKEN_LIFETIME)}")
    return seconds


@node.command()
@click.argument("name")
@click.option(
    "--valid-for",
    callback=lifetime,
    default=format_duration(DEFAULT_TOKEN_LIFETIME),
    show_default=True,
    metavar="DURATION",
    help="How long the token can be used.",
)
@click.option("--quiet", "-q", is_flag=True, help="Print the join string alone.")
@with_settings
def token(settings: ServerSettings, name: str, valid_for: float, quiet: bool) -> None:
    """Make a one-time token for the node NAME and print the command that enrols it.

    The join string is a secret until it is used. Only a hash of its token is stored.
    """
    identity = node_identity(settings.server.organization, name)
    directory = settings.directory
    check_secret_directory(directory.root)
    authority = read_certificates(read_public(directory.ca_certificate))[0]
    ticket = JoinTicket(
        organization=identity.organization,
        node=identity.name,
        enroll_address=settings.enroll_address,
        ca_certificate=authority.public_bytes(Encoding.DER),
        secret=secrets.token_bytes(SECRET_BYTES),
    )
    expires_at = time.time() + valid_for

    async def write(store: Store) -> None:
        await store.write_enrollment_token(
            digest=token_digest(ticket.token),
            organization=identity.organization,
            node=identity.name,
            expires_at=expires_at,
        )

    run_with_store(settings.store_path, write)
    join = encode_join(ticket)
    if quiet:
        click.echo(join)
        return
    until = datetime.fromtimestamp(expires_at, tz=UTC).strftime("%Y-%m-%d %H:%M UTC")
    click.echo(f"# On {name}, once, until {until}; it will call {settings.enroll_address}:", err=True)
    click.echo(f"shovey-agent enroll {join}")


@node.command()
@click.argument("name")
@click.option("--legacy", is_flag=True, required=True, help="A node without an agent of ours: a schob.")
@click.option("--public-key", type=click.File("r"), help="PEM of its Chef client's public key; - for standard input.")
@with_settings
def add(settings: ServerSettings, name: str, legacy: bool, public_key: TextIO | None) -> None:
    """Register the old node NAME, which takes signed orders over serf and reports over HTTP.

    Nodes with an agent of ours register themselves when they enrol (`node token`).
    """
    assert legacy
    identity = node_identity(settings.server.organization, name)
    pem = None if public_key is None else public_key.read()
    now = time.time()

    async def write(store: Store) -> None:
        for known in await store.load_nodes():
            if (known.organization, known.name) == (identity.organization, identity.name):
                raise InvalidRequest(f"there is a node {name} already ({known.link.value})", field="name")
        if pem is not None:
            principals = ChefPrincipals(store=store, clock=WallClock())
            await principals.put(
                organization=identity.organization,
                kind=ChefPrincipalKind.NODE,
                name=identity.name,
                role=None,
                public_key=pem,
            )
        await store.write_node(
            Node(
                name=identity.name,
                organization=identity.organization,
                link=LinkMode.LEGACY,
                enrolled_at=now,
                presence_since=now,
                presence_reason="registered",
            )
        )

    run_with_store(settings.store_path, write)
    click.echo(f"{name} is registered. A running controller takes it up when it is sent HUP.")


add_key_commands(node, ChefPrincipalKind.NODE)
