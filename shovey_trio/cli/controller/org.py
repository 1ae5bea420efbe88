"""``shovey-trio org``: the organizations of a controller, each with its keys, users and nodes."""

from __future__ import annotations

import time
from collections import Counter

import click

from shovey_trio.application.audit import record
from shovey_trio.application.removal import remove_organization
from shovey_trio.cli.controller.offline_store import change_store, note_change, run_with_store
from shovey_trio.cli.controller.options import of_organization, with_settings
from shovey_trio.cli.controller.removals import unfinished_words
from shovey_trio.cli.text.output_formats import Format, output_option, row_shape, write_listing
from shovey_trio.config.server import ServerSettings
from shovey_trio.controller.wings import KEY_KINDS
from shovey_trio.core.audit.records import AuditAction
from shovey_trio.core.errors import InvalidRequest, NotFound
from shovey_trio.identity.files import check_secret_directory
from shovey_trio.identity.names import check_organization
from shovey_trio.identity.organizations import make_organization_keys, organizations, remove_organization_keys
from shovey_trio.store.contract import Store


@click.group()
def org() -> None:
    """Organizations, on the controller's host; the daemon may be running or not."""


@org.command()
@click.argument("name")
@with_settings
def add(settings: ServerSettings, name: str) -> None:
    """Make the organization NAME with its keys: root key, signing key, and those for old nodes."""
    check_organization(name)
    directory = settings.directory
    check_secret_directory(directory.root)
    if name in organizations(directory):
        raise InvalidRequest(f"there is an organization {name} already", field="name")
    make_organization_keys(directory, name, now=time.time(), kinds=KEY_KINDS.values())

    made = AuditAction.ORGANIZATION_MADE
    change_store(
        of_organization(settings, name),
        lambda store, actor: record(store, actor.entry(made, f"organization/{name}")),
    )
    click.echo(f"Organization {name} is made. A running controller takes it up at once.")
    click.echo(f"Its first admin: shovey-trio user cert NAME --role admin --org {name}")
    click.echo(f"Its paths for knife: /organizations/{name}/shovey/... and .../status/...")


@org.command("list")
@output_option
@with_settings
def list_(settings: ServerSettings, output: Format | None) -> None:
    """List the organizations, with the numbers of their users and nodes. The controller's own is marked."""

    async def read(store: Store) -> tuple[Counter[str], Counter[str]]:
        users = Counter(user.organization for user in await store.load_users())
        return users, Counter(node.organization for node in await store.load_nodes())

    users, nodes = run_with_store(settings.store_path, read)
    rows = [
        {"name": name, "users": users[name], "nodes": nodes[name], "own": name == settings.server.organization}
        for name in organizations(settings.directory)
    ]
    write_listing(rows, row_shape("NAME", "USERS", "NODES", "OWN", nothing="no organizations"), output)


@org.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Even if it has jobs that are not finished.")
@with_settings
def remove(settings: ServerSettings, name: str, force: bool) -> None:
    """Remove the organization NAME: its users, nodes, grants, certificates and keys. Its history stays until it is old.

    Its keys cannot be had back: nodes have to be enrolled anew, old nodes need another key.
    """
    directory = settings.directory
    if name == settings.server.organization:
        raise InvalidRequest(f"{name} is the controller's own organization (server.organization)", field="name")
    if name not in organizations(directory):
        raise NotFound(f"there is no organization {name}", organization=name)
    check_secret_directory(directory.root)

    removed = change_store(
        of_organization(settings, name), lambda store, actor: remove_organization(store, actor, force=force)
    )
    remove_organization_keys(directory, name)
    note_change(settings)
    click.echo(f"Organization {name} is gone: {removed.users} users, {removed.nodes} nodes, all of its keys")
    if removed.unfinished:
        click.echo(f"{unfinished_words(removed.unfinished)}", err=True)
