"""``shovey-trio user grant|revoke-grant|grants``: which commands an operator may start, and where."""

from __future__ import annotations

import click

from shovey_trio.application.grants import give_grant, take_grant
from shovey_trio.cli.controller.offline_store import change_store, run_with_store
from shovey_trio.cli.controller.options import for_organization
from shovey_trio.cli.text.output_formats import Format, output_option, row_shape, write_listing
from shovey_trio.config.server import ServerSettings
from shovey_trio.core.jobs.model import Grant, Role
from shovey_trio.identity.names import user_identity

_LONGEST = 256
_COMMAND = click.option("--command", "command", required=True, metavar="PATTERN", help="Commands, such as 'chef-*'.")
_NODES = click.option(
    "--nodes",
    required=True,
    metavar="NODES",
    help="A name or pattern such as 'web-*', tags such as role=web, or a search such as 'name:web-* AND role:web'.",
)


@click.command()
@click.argument("name")
@_COMMAND
@_NODES
@for_organization
def grant(settings: ServerSettings, name: str, command: str, nodes: str) -> None:
    """Let the operator NAME start these commands on these nodes. The first grant takes everything else away."""
    given = _grant(settings, name, command, nodes)
    role, covered = change_store(settings, lambda store, actor: give_grant(store, actor, given))
    click.echo(f"user/{name}: {command} on {nodes}, which {covered} {'node is' if covered == 1 else 'nodes are'} now")
    if role is not Role.OPERATOR:
        click.echo(f"user/{name} is {role.value}: grants narrow operators alone", err=True)


@click.command("revoke-grant")
@click.argument("name")
@_COMMAND
@_NODES
@click.option("--unrestrict", is_flag=True, help="Take the last grant too: the operator may start everything again.")
@for_organization
def revoke_grant(settings: ServerSettings, name: str, command: str, nodes: str, unrestrict: bool) -> None:
    """Take a grant back from the operator NAME; commands and nodes as they were given."""
    given = _grant(settings, name, command, nodes)

    left = change_store(settings, lambda store, actor: take_grant(store, actor, given, unrestrict=unrestrict))
    click.echo(f"user/{name}: {left} grants left" if left else f"user/{name}: not narrowed any more")


@click.command()
@click.argument("name")
@output_option
@for_organization
def grants(settings: ServerSettings, name: str, output: Format | None) -> None:
    """List the grants of the user NAME."""
    identity = user_identity(settings.server.organization, name)
    found = run_with_store(settings.store_path, lambda store: store.load_grants(identity.organization, identity.name))
    rows = [{"command": one.command, "nodes": one.nodes} for one in found]
    write_listing(rows, row_shape("COMMAND", "NODES", nothing=f"user/{name} has no grants and is not narrowed"), output)


def _grant(settings: ServerSettings, name: str, command: str, nodes: str) -> Grant:
    identity = user_identity(settings.server.organization, name)
    for option, pattern in (("--command", command), ("--nodes", nodes)):
        if not pattern or len(pattern) > _LONGEST or not pattern.isprintable():
            raise click.BadParameter(f"expected 1 to {_LONGEST} printable characters", param_hint=option)
    return Grant(organization=identity.organization, user=identity.name, command=command, nodes=nodes)
