"""``shovey-trio import``: users, keys and nodes from elsewhere, into the store of the controller's host."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from shovey_trio.application.members import import_members
from shovey_trio.cli.controller.offline_store import change_store
from shovey_trio.cli.controller.options import for_organization
from shovey_trio.config.server import ServerSettings
from shovey_trio.core.errors import InvalidRequest
from shovey_trio.shovey.kind import KIND
from shovey_trio.shovey.protocol.export import read_export


@click.group(name="import")
def import_() -> None:
    """Bring users, keys and nodes from another server, on the controller's host."""


@import_.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@for_organization
def goiardi(settings: ServerSettings, file: Path) -> None:
    """Import users, clients and nodes from FILE, which `goiardi -x FILE` has written.

    Keys of names that are known here already are replaced; known users keep their role, known nodes stay as they are.
    New nodes are old ones (schob) until they are enrolled. Their Chef tags, roles and environment can be searched for.
    """
    organization = settings.server.organization
    try:
        document = json.loads(file.read_bytes())
    except ValueError as error:
        raise InvalidRequest(f"{file}: {error}") from None
    found = read_export(document, organization=organization, now=time.time())
    made, left_out = change_store(
        settings,
        lambda store, actor: import_members(store, actor, found.principals, found.nodes, kind=KIND, source=file.name),
    )
    click.echo(f"{len(found.principals)} keys and {made} new nodes imported into {organization}")
    for name, why in (*found.skipped, *left_out):
        click.echo(f"left out: {name}: {why}", err=True)
