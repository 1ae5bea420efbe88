"""``shovey-trio user``: users and their certificates, with the CA key and the store of the controller's host."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import click

from shovey_trio.application.removal import Removed, remove_user
from shovey_trio.cli.controller.chef_keys import (
    PUBLIC_KEY,
    USER_ROLES,
    add_key_commands,
    chef_principals,
    key_ids,
    read_pem,
)
from shovey_trio.cli.controller.grants import grant, grants, revoke_grant
from shovey_trio.cli.controller.host_audit import host_entry
from shovey_trio.cli.controller.offline_store import run_with_store
from shovey_trio.cli.controller.options import for_organization
from shovey_trio.cli.controller.removals import note_change, removed_words, revoke_certificates
from shovey_trio.config.server import ServerSettings
from shovey_trio.core.audit.records import AuditAction
from shovey_trio.core.chef.principals import ChefPrincipal, ChefPrincipalKind
from shovey_trio.core.errors import InvalidRequest
from shovey_trio.core.jobs.model import Role, User
from shovey_trio.identity.authority import INTERNAL_NAME, CertificateAuthority
from shovey_trio.identity.files import check_secret_directory, read_public, read_secret
from shovey_trio.identity.names import user_identity
from shovey_trio.identity.profile import ClientProfile, write_profile
from shovey_trio.identity.requests import make_private_key, make_request, private_key_pem
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
    identity = user_identity(settings.server.organization, name)
    pem = None if public_key is None else read_pem(public_key)

    async def write(store: Store) -> None:
        for known in await store.load_users():
            if (known.organization, known.name) == (identity.organization, identity.name):
                raise InvalidRequest(f"there is a user {name} already ({known.role})", field="name")
        if pem is None:
            made = User(name=name, organization=identity.organization, role=Role(role), created_at=time.time())
            await store.write_user(made)
            return
        await chef_principals(store).add_key(
            organization=identity.organization,
            kind=ChefPrincipalKind.USER,
            name=name,
            role=Role(role),
            public_key=pem,
        )

    entry = host_entry(AuditAction.USER_MADE, identity.organization, identity.label, role=role, key=pem is not None)
    run_with_store(settings.store_path, write, audit=entry)
    note_change(settings)
    click.echo(f"user/{name} ({role}) is made")
    if pem is None:
        click.echo(
            f"Let them in: shovey-trio user key {name} FILE, or: shovey-trio user cert {name} --role {role}", err=True
        )


@user.command("list")
@for_organization
def list_users(settings: ServerSettings) -> None:
    """List the users: name, role, ids of Chef keys."""
    organization = settings.server.organization

    async def read(store: Store) -> tuple[Sequence[User], Sequence[ChefPrincipal]]:
        keys = await chef_principals(store).list(organization, ChefPrincipalKind.USER)
        return [known for known in await store.load_users() if known.organization == organization], keys

    users, keys = run_with_store(settings.store_path, read)
    by_name = {stored.name: stored for stored in keys}
    # Who is known by a key alone has the role that came with it.
    roles = {stored.name: stored.role for stored in keys} | {known.name: known.role for known in users}
    for name in sorted(roles):
        click.echo(f"{name}\t{roles[name]}\t{','.join(key_ids(by_name.get(name))) or '-'}")


@user.command()
@click.argument("name")
@for_organization
def revoke(settings: ServerSettings, name: str) -> None:
    """Void every certificate of the user NAME, who stays; `user cert` makes another one. Chef keys: `user remove-key`.

    What they are watching ends at once. Jobs they started go on.
    """
    revoke_certificates(settings, user_identity(settings.server.organization, name))


@user.command()
@click.argument("name")
@for_organization
def remove(settings: ServerSettings, name: str) -> None:
    """Remove the user NAME, with their certificates and Chef keys. Jobs they started go on; their grants stay."""
    organization = settings.server.organization

    async def write(store: Store) -> Removed:
        return await remove_user(store, organization, name)

    entry = host_entry(AuditAction.USER_REMOVED, organization, f"user/{name}")
    removed = run_with_store(settings.store_path, write, audit=entry)
    note_change(settings)
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
    directory, now = settings.directory, time.time()
    target = out or Path.cwd() / f"shovey-{name}"
    if target.exists() and any(target.iterdir()):
        # Found again when it is written; known before the store is changed.
        raise FileExistsError(f"{target} exists and is not empty")
    check_secret_directory(directory.root)
    ca_certificates = read_public(directory.ca_certificate)
    authority = CertificateAuthority.from_pem(ca_certificates, read_secret(directory.ca_key))
    key = make_private_key()
    issued = authority.issue_client(csr=make_request(key), identity=identity, now=now)

    async def write(store: Store) -> User | None:
        known = {(user.organization, user.name): user for user in await store.load_users()}
        before = known.get((identity.organization, identity.name))
        await store.write_user(
            User(
                name=identity.name,
                organization=identity.organization,
                role=Role(role),
                created_at=before.created_at if before else now,
            ),
            audit=host_entry(
                AuditAction.USER_CERTIFIED,
                identity.organization,
                identity.label,
                role=role,
                before=before.role.value if before else "",
                serial=issued.serial,
            ),
        )
        await store.write_certificate(
            serial=issued.serial,
            organization=identity.organization,
            subject=identity.label,
            expires_at=issued.expires_at,
        )
        return before

    before = run_with_store(settings.store_path, write)
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
