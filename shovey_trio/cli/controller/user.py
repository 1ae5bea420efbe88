"""``shovey-trio user``: users and their certificates, with the CA key and the store of the controller's host."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import click

from shovey_trio.application.chef_keys import list_chef_principals
from shovey_trio.application.members import certify_user, make_user
from shovey_trio.application.removal import remove_user
from shovey_trio.cli.controller.chef_keys import PUBLIC_KEY, USER_ROLES, add_key_commands, key_ids, read_pem
from shovey_trio.cli.controller.grants import grant, grants, revoke_grant
from shovey_trio.cli.controller.offline_store import change_store, run_with_store
from shovey_trio.cli.controller.options import for_organization
from shovey_trio.cli.controller.removals import removed_words, revoke_all
from shovey_trio.cli.text.output_formats import Format, output_option, row_shape, write_listing
from shovey_trio.config.server import ServerSettings
from shovey_trio.core.chef.principals import ChefPrincipal, ChefPrincipalKind
from shovey_trio.core.jobs.model import Role, User
from shovey_trio.identity.authority import INTERNAL_NAME
from shovey_trio.identity.files import check_secret_directory, read_public
from shovey_trio.identity.names import user_identity
from shovey_trio.identity.profile import ClientProfile, write_profile
from shovey_trio.identity.requests import make_private_key, make_request, private_key_pem
from shovey_trio.identity.tls import load_authority
from shovey_trio.store.contract import Store

_ROLE = click.option(
    "--role", type=click.Choice([role.value for role in USER_ROLES]), required=True, help="What the user may do."
)


@click.group()
def user() -> None:
    """Users, their certificates and keys, on the controller's host; the daemon may be running or not."""


@user.command()
@click.argument("name")
@_ROLE
@click.option("--public-key", type=PUBLIC_KEY, help="PEM of their Chef public keys; - for standard input.")
@for_organization
def add(settings: ServerSettings, name: str, role: str, public_key: IO[str] | None) -> None:
    """Make the user NAME. They can call once they have a Chef key (for knife) or a certificate (`user cert`)."""
    pem = None if public_key is None else read_pem(public_key)
    change_store(settings, lambda store, actor: make_user(store, actor, name, Role(role), pem))
    click.echo(f"user/{name} ({role}) is made")
    if pem is None:
        click.echo(
            f"Let them in: shovey-trio user key {name} FILE, or: shovey-trio user cert {name} --role {role}", err=True
        )


@user.command("list")
@output_option
@for_organization
def list_users(settings: ServerSettings, output: Format | None) -> None:
    """List the users, with their roles and the ids of their Chef keys."""
    organization = settings.server.organization

    async def read(store: Store) -> tuple[Sequence[User], Sequence[ChefPrincipal]]:
        keys = await list_chef_principals(store, organization, ChefPrincipalKind.USER)
        return [known for known in await store.load_users() if known.organization == organization], keys

    users, keys = run_with_store(settings.store_path, read)
    by_name = {stored.name: stored for stored in keys}
    # Who is known by a key alone has the role that came with it.
    roles = {stored.name: stored.role for stored in keys} | {known.name: known.role for known in users}
    rows = [
        {"name": name, "role": role.value, "chef_keys": key_ids(by_name.get(name))}
        for name, role in sorted(roles.items())
    ]
    write_listing(rows, row_shape("NAME", "ROLE", "CHEF KEYS", nothing="no users"), output)


@user.command()
@click.argument("name")
@for_organization
def revoke(settings: ServerSettings, name: str) -> None:
    """Void every certificate of the user NAME, who stays; `user cert` makes another one. Chef keys: `user remove-key`.

    What they are watching ends at once. Jobs they started go on.
    """
    revoke_all(settings, user_identity(settings.server.organization, name))


@user.command()
@click.argument("name")
@for_organization
def remove(settings: ServerSettings, name: str) -> None:
    """Remove the user NAME, with their certificates and Chef keys. Jobs they started go on; their grants stay."""
    removed = change_store(settings, lambda store, actor: remove_user(store, actor, name))
    click.echo(f"user/{name} is gone: {removed_words(removed)}")


@user.command()
@click.argument("name")
@_ROLE
@click.option(
    "--out",
    type=click.Path(path_type=Path, resolve_path=True, file_okay=False),
    help="Client directory to write (0700).  [default: ./shovey-NAME]",
)
@for_organization
def cert(settings: ServerSettings, name: str, role: str, out: Path | None) -> None:
    """Make a key and a certificate for the user NAME, and a client directory that holds them.

    The user is made, or gets this role from now on. Certificates that were issued before stay valid.
    """
    identity = user_identity(settings.server.organization, name)
    directory = settings.directory
    target = out or Path.cwd() / f"shovey-{name}"
    if target.exists() and any(target.iterdir()):
        # Found again when it is written; known before the store is changed.
        raise FileExistsError(f"{target} exists and is not empty")
    check_secret_directory(directory.root)
    ca_certificates = read_public(directory.ca_certificate)
    authority = load_authority(directory)
    key = make_private_key()
    issued = authority.issue_client(csr=make_request(key), identity=identity, now=time.time())
    _, before = change_store(settings, lambda store, actor: certify_user(store, actor, name, Role(role), issued))
    profile = ClientProfile(
        organization=identity.organization,
        label=identity.label,
        server=settings.control_address,
        enroll_server=settings.enroll_address,
        server_name=INTERNAL_NAME,
        ca_certificates=ca_certificates,
        certificate=issued.chain,
        private_key=private_key_pem(key),
    )
    written = write_profile(profile, target)
    if before is not None and before.role is not Role(role):
        click.echo(f"user/{name} was {before.role} and is {role} now", err=True)
    click.echo(f"user/{name} ({role}): {written.root}")
    click.echo(f"Use it: export SHOVEY_CONFIG={written.root}; shovey node list")


add_key_commands(user, ChefPrincipalKind.USER)


for _command in (grant, revoke_grant, grants):
    user.add_command(_command)
