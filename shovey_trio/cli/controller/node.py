"""``shovey-trio node``: enrolment of nodes, through the store of the controller's host."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import IO, ParamSpec, TypeVar

import click
from cryptography.hazmat.primitives.serialization import Encoding

from shovey_trio.application.chef_keys import list_chef_principals
from shovey_trio.application.credentials import open_enrollment
from shovey_trio.application.members import register_node
from shovey_trio.application.removal import remove_node
from shovey_trio.cli.controller.chef_keys import PUBLIC_KEY, add_key_commands, key_ids, read_pem
from shovey_trio.cli.controller.offline_store import change_store, run_with_store
from shovey_trio.cli.controller.options import for_organization
from shovey_trio.cli.controller.removals import removed_words, revoke_all
from shovey_trio.cli.text.output_formats import Format, output_option, row_shape, write_listing
from shovey_trio.config.server import ServerSettings
from shovey_trio.config.types import format_duration, parse_duration
from shovey_trio.controller.wings import NODE_KINDS
from shovey_trio.core.chef.principals import ChefPrincipal, ChefPrincipalKind
from shovey_trio.core.jobs.model import Node
from shovey_trio.core.trust.enrollment import (
    DEFAULT_TOKEN_LIFETIME,
    MAX_TOKEN_LIFETIME,
    SECRET_BYTES,
    JoinTicket,
    encode_join,
)
from shovey_trio.identity.authority import read_certificates
from shovey_trio.identity.files import check_secret_directory, contents_of, read_public
from shovey_trio.identity.names import node_identity
from shovey_trio.store.contract import Store

P = ParamSpec("P")
T = TypeVar("T")


@click.group()
def node() -> None:
    """Nodes, their enrolment and keys, on the controller's host; the daemon may be running or not."""


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
@for_organization
def token(settings: ServerSettings, name: str, valid_for: float, quiet: bool) -> None:
    """Make a one-time token for the node NAME and print the command that enrols it.

    The join string is a secret until it is used. Only a hash of its token is stored.
    """
    from shovey_trio.controller.settings import load_signing_keys  # brings grpc, which no other command here needs

    identity = node_identity(settings.server.organization, name)
    directory = settings.directory
    check_secret_directory(directory.root)
    authorities = read_public(directory.ca_certificate)
    with contents_of(directory.ca_certificate):
        authority = read_certificates(authorities)[0]
    ticket = JoinTicket(
        organization=identity.organization,
        node=identity.name,
        enroll_address=settings.enroll_address,
        ca_certificate=authority.public_bytes(Encoding.DER),
        secret=secrets.token_bytes(SECRET_BYTES),
        root_public_key=load_signing_keys(settings, identity.organization).root_public_key,
    )
    # Looked up when it is used: a thousand of them are no reason to read everything again.
    made = change_store(
        settings,
        lambda store, actor: open_enrollment(store, actor, name, secret=ticket.secret, valid_for=valid_for),
        tell=False,
    )
    join = encode_join(ticket)
    if quiet:
        click.echo(join)
        return
    until = datetime.fromtimestamp(made.expires_at, tz=UTC).strftime("%Y-%m-%d %H:%M UTC")
    click.echo(f"# On {name}, once, until {until}; it will call {settings.enroll_address}:", err=True)
    click.echo(f"shovey-agent enroll {join}")


def _kind_options(function: Callable[P, T]) -> Callable[P, T]:
    """Adds a flag for each kind of nodes without an agent of ours, passed as ``kind``; one of them has to be given."""
    for kind, about in NODE_KINDS.items():
        function = click.option(f"--{kind}", "kind", flag_value=kind, required=True, help=about)(function)
    return function


@node.command()
@click.argument("name")
@_kind_options
@click.option("--public-key", type=PUBLIC_KEY, help="PEM of its Chef client's public keys; - for standard input.")
@for_organization
def add(settings: ServerSettings, name: str, kind: str, public_key: IO[str] | None) -> None:
    """Register the node NAME, which has no agent of ours and is reached in another way.

    Nodes with an agent of ours register themselves when they enrol (`node token`).
    """
    pem = None if public_key is None else read_pem(public_key)
    change_store(settings, lambda store, actor: register_node(store, actor, name, kind=kind, public_key=pem))
    click.echo(f"{name} is registered. A running controller takes it up at once.")


@node.command("list")
@output_option
@for_organization
def list_nodes(settings: ServerSettings, output: Format | None) -> None:
    """List the registered nodes, with presence as last stored and the ids of Chef keys. More: `shovey node list`."""
    organization = settings.server.organization

    async def read(store: Store) -> tuple[Sequence[Node], Sequence[ChefPrincipal]]:
        keys = await list_chef_principals(store, organization, ChefPrincipalKind.NODE)
        return [known for known in await store.load_nodes() if known.organization == organization], keys

    nodes, keys = run_with_store(settings.store_path, read)
    by_name = {stored.name: stored for stored in keys}
    rows = [
        {
            "name": known.name,
            "link": known.link,
            "presence": known.presence.value,
            "chef_keys": key_ids(by_name.get(known.name)),
        }
        for known in nodes
    ]
    write_listing(rows, row_shape("NAME", "LINK", "PRESENCE", "CHEF KEYS", nothing="no nodes"), output)


@node.command()
@click.argument("name")
@for_organization
def revoke(settings: ServerSettings, name: str) -> None:
    """Void every certificate of the node NAME, which stays registered: its agent is cut off until it is enrolled anew.

    For a stolen key. Commands that run there go on; `node token` and `shovey-agent enroll --again` let it back in.
    """
    revoke_all(settings, node_identity(settings.server.organization, name))


@node.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Even if it has runs that are not finished.")
@for_organization
def remove(settings: ServerSettings, name: str, force: bool) -> None:
    """Remove the node NAME for good, with its certificates and Chef keys. Its history stays.

    An agent that is running there is cut off, and may be enrolled anew (`node token`).
    """
    removed = change_store(settings, lambda store, actor: remove_node(store, actor, name, force=force))
    click.echo(f"node/{name} is gone: {removed_words(removed)}")


add_key_commands(node, ChefPrincipalKind.NODE)
