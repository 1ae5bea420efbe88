"""``shovey-trio import``: users, keys and nodes from elsewhere, into the store of the controller's host."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

import click

from shovey_trio.cli.controller.host_audit import host_entry
from shovey_trio.cli.controller.offline_store import run_with_store
from shovey_trio.cli.controller.options import for_organization
from shovey_trio.cli.controller.removals import note_change
from shovey_trio.config.server import ServerSettings
from shovey_trio.core.audit.records import AuditAction
from shovey_trio.core.chef.principals import ChefPrincipalKind
from shovey_trio.core.errors import InvalidRequest
from shovey_trio.core.jobs.model import Node, User
from shovey_trio.identity.names import node_identity
from shovey_trio.shovey.kind import KIND
from shovey_trio.shovey.protocol.export import read_export
from shovey_trio.store.contract import Store


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
    organization, now = settings.server.organization, time.time()
    try:
        document = json.loads(file.read_bytes())
    except ValueError as error:
        raise InvalidRequest(f"{file}: {error}") from None
    found = read_export(document, organization=organization, now=now)
    skipped = list(found.skipped)

    async def write(store: Store) -> int:
        await store.write_chef_principals(found.principals)
        users = {user.name for user in await store.load_users() if user.organization == organization}
        for principal in found.principals:
            if principal.kind is ChefPrincipalKind.USER and principal.name not in users:
                user = User(name=principal.name, organization=organization, role=principal.role, created_at=now)
                await store.write_user(user)
        known = {node.name for node in await store.load_nodes() if node.organization == organization}
        made = 0
        for name, tags in found.nodes.items():
            try:
                node_identity(organization, name)
            except InvalidRequest as error:
                skipped.append((f"node {name}", error.message))
                continue
            if name not in known:
                await store.write_node(_old_node(name, organization, tags, now))
                made += 1
        return made

    entry = host_entry(AuditAction.IMPORTED, organization, "", file=file.name, keys=len(found.principals))
    made = run_with_store(settings.store_path, write, audit=entry)
    note_change(settings)
    click.echo(f"{len(found.principals)} keys and {made} new nodes imported into {organization}")
    for name, why in skipped:
        click.echo(f"left out: {name}: {why}", err=True)


def _old_node(name: str, organization: str, tags: Mapping[str, str], now: float) -> Node:
    return Node(
        name=name,
        organization=organization,
        tags=tags,
        link=KIND,
        enrolled_at=now,
        presence_since=now,
        presence_reason="imported",
    )
