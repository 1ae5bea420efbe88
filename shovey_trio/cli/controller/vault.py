"""``shovey-trio vault``: keys into Vault, and whether the daemon could read them there."""

from __future__ import annotations

import click

from shovey_trio.cli.controller.options import for_organization
from shovey_trio.config.server import ServerSettings
from shovey_trio.controller.settings import vault_document
from shovey_trio.core.errors import InvalidRequest
from shovey_trio.identity.files import check_secret_directory
from shovey_trio.identity.key_sources import LegacyKeyDocument, load_signing_document
from shovey_trio.identity.root_keys import KeyRing
from shovey_trio.identity.signing_keys import signing_keys_document
from shovey_trio.shovey.keys import LegacyKeyFile, legacy_keys_document


@click.group()
def vault() -> None:
    """Keys in Vault or OpenBao: `[vault]` says where, `[secrets]` has the daemon read them there."""


@vault.command()
@click.option("--legacy", is_flag=True, help="The RSA keys for old nodes, in the place of the signing keys.")
@for_organization
def put(settings: ServerSettings, legacy: bool) -> None:
    """Write the keys of the data directory into Vault, over those that are there.

    A running daemon that reads them there takes them up within `vault.refresh`. The files may be removed then; changing
    keys (`key rotate` and others) works on files, and `put` brings the result into Vault.
    """
    organization = _check(settings)
    check_secret_directory(settings.directory.root)
    if legacy:
        document = legacy_keys_document(LegacyKeyFile(settings.directory.legacy_keys(organization)).load(organization))
    else:
        document = signing_keys_document(KeyRing(settings.directory, organization).load())
    place = vault_document(settings, organization, "legacy" if legacy else "signing")
    version = place.put(document)
    click.echo(f"{place.path}: version {version}")


@vault.command()
@click.option("--legacy", is_flag=True, help="The RSA keys for old nodes, in the place of the signing keys.")
@for_organization
def check(settings: ServerSettings, legacy: bool) -> None:
    """Log in as the daemon would, read the keys, and show their ids."""
    organization = _check(settings)
    place = vault_document(settings, organization, "legacy" if legacy else "signing")
    if legacy:
        for key in LegacyKeyDocument(place, place.path).load(organization).keys:
            click.echo(key.key_id)
        return
    keys = load_signing_document(place, place.path, organization)
    for known in keys.keys.keys:
        click.echo(f"{known.key_id}  {known.state}")


def _check(settings: ServerSettings) -> str:
    if not settings.vault.address:
        raise InvalidRequest("vault.address is not set", field="vault")
    return settings.server.organization
