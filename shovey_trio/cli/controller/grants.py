"""``shovey-trio user grant|revoke-grant|grants``: which commands an operator may start, and where."""

from __future__ import annotations

from collections.abc import Sequence

import click

from shovey_trio.cli.controller.host_audit import host_entry
from shovey_trio.cli.controller.offline_store import run_with_store
from shovey_trio.cli.controller.options import for_organization
from shovey_trio.config.server import ServerSettings
from shovey_trio.core.audit.records import AuditAction, AuditEntry
from shovey_trio.core.errors import InvalidRequest, NotFound
from shovey_trio.core.jobs.model import Grant, Role
from shovey_trio.core.jobs.targeting import predicate
from shovey_trio.core.trust.grants import parse_granted_nodes
from shovey_trio.identity.names import user_identity
from shovey_trio.store.contract import Store

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
    covers = predicate(parse_granted_nodes(nodes))

    async def write(store: Store) -> tuple[Role, int]:
        for user in await store.load_users():
            if (user.organization, user.name) == (given.organization, given.user):
                await store.write_grant(given, audit=_entry(AuditAction.GRANT_GIVEN, given))
                known = (node for node in await store.load_nodes() if node.organization == given.organization)
                return user.role, sum(covers(node) for node in known)
        raise NotFound(f"there is no user {name}", user=name)

    role, covered = run_with_store(settings.store_path, write)
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

    async def remove(store: Store) -> int:
        grants = await store.load_grants(given.organization, given.user)
        if given not in grants:
            raise NotFound(f"user/{name} has no grant for {command} on {nodes}", user=name)
        if len(grants) == 1 and not unrestrict:
            raise InvalidRequest(
                "without its last grant an operator may start everything; --unrestrict says that this is meant",
                field="unrestrict",
            )
        await store.remove_grant(given, audit=_entry(AuditAction.GRANT_REVOKED, given))
        return len(grants) - 1

    left = run_with_store(settings.store_path, remove)
    click.echo(f"user/{name}: {left} grants left" if left else f"user/{name}: not narrowed any more")


@click.command()
@click.argument("name")
@for_organization
def grants(settings: ServerSettings, name: str) -> None:
    """List the grants of the user NAME."""
    identity = user_identity(settings.server.organization, name)

    async def load(store: Store) -> Sequence[Grant]:
        return await store.load_grants(identity.organization, identity.name)

    found = run_with_store(settings.store_path, load)
    for one in found:
        click.echo(f"{one.command} on {one.nodes}")
    if not found:
        click.echo(f"user/{name} has no grants and is not narrowed", err=True)


def _entry(action: AuditAction, given: Grant) -> AuditEntry:
    return host_entry(action, given.organization, f"user/{given.user}", command=given.command, nodes=given.nodes)


def _grant(settings: ServerSettings, name: str, command: str, nodes: str) -> Grant:
    identity = user_identity(settings.server.organization, name)
    for option, pattern in (("--command", command), ("--nodes", nodes)):
        if not pattern or len(pattern) > _LONGEST or not pattern.isprintable():
            raise click.BadParameter(f"expected 1 to {_LONGEST} printable characters", param_hint=option)
    return Grant(organization=identity.organization, user=identity.name, command=command, nodes=nodes)


_LONGEST = 256
