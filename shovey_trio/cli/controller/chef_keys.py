"""``key``, ``keys`` and ``remove-key`` of ``shovey-trio user`` and ``shovey-trio node``: Chef keys of REST callers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO

import click

from shovey_trio.application.chef_keys import add_chef_key, list_chef_principals, remove_chef_key
from shovey_trio.cli.controller.offline_store import change_store, run_with_store
from shovey_trio.cli.controller.options import for_organization
from shovey_trio.cli.text.output_formats import Format, output_option, row_shape, write_listing
from shovey_trio.config.server import ServerSettings
from shovey_trio.core.chef.keys import ChefKey, read_chef_keys
from shovey_trio.core.chef.principals import ChefPrincipal, ChefPrincipalKind
from shovey_trio.core.jobs.model import Role
from shovey_trio.identity.names import check_name

#: What a user may be; ``Role.NODE`` is the nodes' own.
USER_ROLES = (Role.ADMIN, Role.OPERATOR, Role.VIEWER)
#: A file of PEM blocks, or standard input.
PUBLIC_KEY = click.File("r", encoding="utf-8", errors="replace")
# Far above ten keys; what is longer is another file.
_LONGEST = 256 * 1024


def read_pem(file: IO[str]) -> str:
    """What a key file holds, cut where no key file reaches."""
    return file.read(_LONGEST)


def add_key_commands(group: click.Group, kind: ChefPrincipalKind) -> None:
    """Gives a group the three commands for its kind of principal."""
    group.add_command(_key_command(kind))
    group.add_command(_keys_command(kind))
    group.add_command(_remove_command(kind))


def _key_command(kind: ChefPrincipalKind) -> click.Command:
    @click.command(
        "key", help=f"Let the {kind} NAME call the REST shim, with the Chef public key in FILE (- for stdin)."
    )
    @click.argument("name")
    @click.argument("file", type=PUBLIC_KEY)
    @click.option("--only", is_flag=True, help="The keys that were there before do not hold any more.")
    @for_organization
    def key(settings: ServerSettings, name: str, file: IO[str], only: bool, role: str | None = None) -> None:
        check_name(name, kind.value)
        pem = read_pem(file)

        given = Role(role) if role else None
        stored = change_store(
            settings, lambda store, actor: add_chef_key(store, actor, kind, name, pem, role=given, alone=only)
        )
        keys = read_chef_keys(stored.public_key)
        click.echo(f"{stored.principal.label} ({stored.role}) may sign requests with {_words(keys)}")
        if len(keys) > 1:
            click.echo(f"`shovey-trio {kind} remove-key {name} KEY` takes an old one away", err=True)

    if kind is ChefPrincipalKind.USER:
        choice = click.Choice([role.value for role in USER_ROLES])
        click.option("--role", type=choice, help="What the user may do, here and over gRPC.  [default: as before]")(key)
    return key


def _keys_command(kind: ChefPrincipalKind) -> click.Command:
    @click.command("keys", help=f"List the {kind}s that may call the REST shim, with the ids of their keys.")
    @output_option
    @for_organization
    def keys(settings: ServerSettings, output: Format | None) -> None:
        organization = settings.server.organization
        known = run_with_store(settings.store_path, lambda store: list_chef_principals(store, organization, kind))
        rows = [{"name": stored.name, "role": stored.role.value, "chef_keys": key_ids(stored)} for stored in known]
        write_listing(rows, row_shape("NAME", "ROLE", "CHEF KEYS", nothing=f"no {kind} has a Chef key"), output)

    return keys


def _remove_command(kind: ChefPrincipalKind) -> click.Command:
    @click.command(
        "remove-key", help=f"Take the Chef keys of the {kind} NAME away, or one; it holds within ten seconds."
    )
    @click.argument("name")
    @click.argument("key_id", metavar="[KEY]", default="")
    @for_organization
    def remove_key(settings: ServerSettings, name: str, key_id: str) -> None:
        left = change_store(settings, lambda store, actor: remove_chef_key(store, actor, kind, name, key_id))
        click.echo(f"{kind}/{name} can sign {f'requests with {_words(left)}' if left else 'no more requests'}")

    return remove_key


def key_ids(stored: ChefPrincipal | None) -> list[str]:
    """The ids of a principal's keys, for people to name them by."""
    return [] if stored is None else [key.key_id for key in read_chef_keys(stored.public_key)]


def _words(keys: Sequence[ChefKey]) -> str:
    return ("key " if len(keys) == 1 else "keys ") + ", ".join(key.key_id for key in keys)
