"""``shovey-trio user``: users and their certificates, with the CA key and the store of the controller's host."""

from __future__ import annotations

import time
from pathlib import Path

import click

from shovey_trio.cli.daemon_chef_keys import add_key_commands
from shovey_trio.cli.daemon_grants import grant, grants, revoke_grant
from shovey_trio.cli.daemon_options import with_settings
from shovey_trio.cli.offline_store import run_with_store
from shovey_trio.config import ServerSettings
from shovey_trio.core.chef_principals import ChefPrincipalKind
from shovey_trio.core.model import Role, User
from shovey_trio.identity.authority import INTERNAL_NAME, CertificateAuthority
from shovey_trio.identity.files import check_secret_directory, read_public, read_secret
from shovey_trio.identity.names import user_identity
from shovey_trio.identity.profile import ClientProfile, write_profile
from shovey_trio.identity.requests import make_private_key, make_request, private_key_pem
from shovey_trio.nursery.ports import Store

_ROLES = (Role.ADMIN, Role.OPERATOR, Role.VIEWER)


@click.group()
def user() -> None:
    """Certificates of users, on the controller's host; the daemon may be running or not."""


@user.command()
@click.argument("name")
@click.option("--role", type=click.Choice([role.value for role in _ROLES]), required=True, help="What the user may do.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, resolve_path=True, file_okay=False),
    help="Client directory to write (0700).  [default: ./shovey-NAME]",
)
@with_settings
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
            )
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
