"""``shovey-trio legacy``: the keys that orders to old nodes (schob) are signed with, on the controller's host."""

from __future__ import annotations

import time
from collections.abc import Mapping

import click

from shovey_trio.application.audit import record
from shovey_trio.cli.controller.offline_store import change_store, note_change, run_with_store
from shovey_trio.cli.controller.options import for_organization
from shovey_trio.cli.text.output_formats import Format, output_option, row_shape, write_listing
from shovey_trio.config.server import ServerSettings
from shovey_trio.core.errors import NotFound
from shovey_trio.identity.files import check_secret_directory
from shovey_trio.identity.key_files import KeyFile
from shovey_trio.shovey.keys import SCHOB_KEYS, SchobKeys, make_schob_key
from shovey_trio.shovey.kind import KEY_RESET, KIND
from shovey_trio.store.contract import Store

_TAKEN_UP = "A running controller takes it up at once."


@click.group()
def legacy() -> None:
    """Old nodes (schob); the daemon may be running or not."""


@legacy.group()
def key() -> None:
    """The RSA keys that their orders are signed with. Each node holds one public key, put there by hand."""


@key.command()
@click.option("--pem", is_flag=True, help="Print the current public key alone: what nodes are given.")
@output_option
@for_organization
def status(settings: ServerSettings, pem: bool, output: Format | None) -> None:
    """Show the keys, for how many nodes each signs, and which of them do not hold the current one yet."""
    keys = _file(settings).load(settings.server.organization)
    if pem:
        click.echo(keys.current.public_pem, nl=False)
        return
    registered = _registered(settings)
    rows = []
    for known in reversed(keys.keys):
        held = sorted(node for node, at in registered.items() if keys.key_of(node, registered_at=at) is known)
        is_current = known is keys.current
        rows.append(
            {
                "key_id": known.key_id,
                "state": "current" if is_current else "old",
                "made": _day(known.created_at),
                "nodes": len(held),
                "to_be_moved": [] if is_current else held,
            }
        )
    write_listing(rows, row_shape("KEY ID", "STATE", "MADE", "NODES", "TO BE MOVED", nothing="no keys"), output)


@key.command()
@for_organization
def reset(settings: ServerSettings) -> None:
    """Make a new key. Nodes are signed for with the old one until each of them has shown that it holds the new one."""
    organization = settings.server.organization
    fresh = make_schob_key(time.time())
    _file(settings).change(organization, lambda keys: keys.with_key(fresh))
    subject = f"key/{fresh.key_id}"
    change_store(settings, lambda store, actor: record(store, actor.entry(KEY_RESET, subject)))
    click.echo(fresh.public_pem, nl=False)
    click.echo(f"# Put it on every node in the place of the old one. {_TAKEN_UP}", err=True)


@key.command()
@click.argument("node")
@for_organization
def moved(settings: ServerSettings, node: str) -> None:
    """Say that NODE holds the current key. Not needed: it shows it by itself, by refusing one order."""
    organization = settings.server.organization
    registered = _registered(settings)
    if node not in registered:
        raise NotFound(f"there is no old node {node}", node=node)

    def move(keys: SchobKeys) -> SchobKeys:
        return keys.with_held({node: keys.current.key_id}).pruned(registered)

    keys = _file(settings).change(organization, move)
    note_change(settings)
    click.echo(f"{node} is signed for with {keys.current.key_id}. {_TAKEN_UP}")


def _day(at: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(at))


def _file(settings: ServerSettings) -> KeyFile[SchobKeys]:
    check_secret_directory(settings.directory.root)
    return SCHOB_KEYS.ensure(settings.directory, settings.server.organization, now=time.time())


def _registered(settings: ServerSettings) -> Mapping[str, float]:
    async def read(store: Store) -> Mapping[str, float]:
        nodes = await store.load_nodes()
        return {
            node.name: node.enrolled_at
            for node in nodes
            if node.organization == settings.server.organization and node.link == KIND
        }

    return run_with_store(settings.store_path, read)
