"""``key``, ``keys`` and ``remove-key`` of ``shovey-trio user`` and ``shovey-trio node``: Chef keys of REST callers."""

from __future__ import annotations

from pathlib import Path

import click

from shovey_trio.application.chef_callers import ChefPrincipals
from shovey_trio.cli.daemon_options import with_settings
from shovey_trio.cli.offline_store import run_with_store
from shovey_trio.config import ServerSettings
from shovey_trio.core.chef_principals import ChefPrincipal, ChefPrincipalKind
from shovey_trio.core.model import Role
from shovey_trio.identity.names import check_name
from shovey_trio.nursery.clock import WallClock
from shovey_trio.nursery.ports import Store

_ROLES = (Role.ADMIN, Role.OPERATOR, Role.VIEWER)
_PUBLIC_KEY = click.Path(path_type=Path, exists=True, dir_okay=False)


def add_key_commands(group: click.Group, kind: ChefPrincipalKind) -> None:
    """Gives a group the three commands for its kind of principal."""
    group.add_command(_key_command(kind))
    group.add_command(_keys_command(kind))
    group.add_command(_remove_command(kind))


def _key_command(kind: ChefPrincipalKind) -> click.Command:
    @click.command("key", help=f"Let the {kind} NAME call the REST shim, with the Chef public key in the file FILE.")
    @click.argument("name")
    @click.argument("file", type=_PUBLIC_KEY)
    @with_settings
    def key(settings: ServerSettings, name: str, file: Path, role: str | None = None) -> None:
        check_name(name, kind.value)
        pem = file.read_text("utf-8", errors="replace")

        async def write(store: Store) -> ChefPrincipal:
            return await _principals(store).put(
                organization=settings.server.organization,
                kind=kind,
                name=name,
                role=Role(role) if role else None,
                public_key=pem,
            )

        stored = run_with_store(settings.store_path, write)
        click.echo(f"{stored.principal.label} ({stored.role}) may sign requests with this key")

    if kind is ChefPrincipalKind.USER:
        choice = click.Choice([role.value for role in _ROLES])
        click.option("--role", type=choice, help="What the user may do.  [default: as before]")(key)
    return key


def _keys_command(kind: ChefPrincipalKind) -> click.Command:
    @click.command("keys", help=f"List the {kind}s that may call the REST shim.")
    @with_settings
    def keys(settings: ServerSettings) -> None:
        async def read(store: Store) -> list[ChefPrincipal]:
            return list(await _principals(store).list(settings.server.organization, kind))

        for stored in run_with_store(settings.store_path, read):
            click.echo(f"{stored.name}\t{stored.role}")

    return keys


def _remove_command(kind: ChefPrincipalKind) -> click.Command:
    @click.command("remove-key", help=f"Take the Chef key of the {kind} NAME away; it holds within ten seconds.")
    @click.argument("name")
    @with_settings
    def remove_key(settings: ServerSettings, name: str) -> None:
        async def write(store: Store) -> None:
            await _principals(store).remove(settings.server.organization, kind, name)

        run_with_store(settings.store_path, write)
        click.echo(f"{kind}/{name} can sign no more requests")

    return remove_key


def _principals(store: Store) -> ChefPrincipals:
    return ChefPrincipals(store=store, clock=WallClock())
