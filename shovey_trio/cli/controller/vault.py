"""``shovey-trio vault``: keys into Vault, and whether the daemon could read them there."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import click

from shovey_trio.cli.controller.options import for_organization
from shovey_trio.config.server import ServerSettings
from shovey_trio.controller.settings import vault_document
from shovey_trio.controller.wings import KEY_KINDS
from shovey_trio.core.errors import InvalidRequest
from shovey_trio.identity.files import check_secret_directory
from shovey_trio.identity.key_sources import KeyDocument
from shovey_trio.identity.root_keys import KeyRing
from shovey_trio.identity.signing_keys import SigningKeyFile, signing_keys_document

P = ParamSpec("P")
T = TypeVar("T")


@click.group()
def vault() -> None:
    """Keys in Vault or OpenBao: `[vault]` says where, `[secrets]` has the daemon read them there."""


def _kind_options(function: Callable[P, T]) -> Callable[P, T]:
    """Adds a flag for each kind of keys beside the signing keys, passed as ``kind``."""
    for kind in KEY_KINDS.values():
        about = f"The {kind.about}, in the place of the signing keys."
        function = click.option(f"--{kind.word}", "kind", flag_value=kind.word, help=about)(function)
    return function


@vault.command()
@_kind_options
@for_organization
def put(settings: ServerSettings, kind: str | None) -> None:
    """Write the keys of the data directory into Vault, over those that are there.

    A running daemon that reads them there takes them up within `vault.refresh`. The files may be removed then; changing
    keys (`key rotate` and others) works on files, and `put` brings the result into Vault.
    """
    organization = _check(settings)
    check_secret_directory(settings.directory.root)
    if kind is None:
        document = signing_keys_document(KeyRing(settings.directory, organization).load())
    else:
        file = KEY_KINDS[kind].file_of(settings.directory, organization)
        document = file.document(file.load(organization))
    place = vault_document(settings, organization, kind or "signing")
    version = place.put(document)
    click.echo(f"{place.path}: version {version}")


@vault.command()
@_kind_options
@for_organization
def check(settings: ServerSettings, kind: str | None) -> None:
    """Log in as the daemon would, read the keys, and show their ids."""
    organization = _check(settings)
    place = vault_document(settings, organization, kind or "signing")
    if kind is not None:
        keys = KeyDocument(KEY_KINDS[kind].file, place, place.path).load(organization)
        for key_id in KEY_KINDS[kind].ids(keys):
            click.echo(key_id)
        return
    for known in KeyDocument(SigningKeyFile, place, place.path).load(organization).keys.keys:
        click.echo(f"{known.key_id}  {known.state}")


def _check(settings: ServerSettings) -> str:
    if not settings.vault.address:
        raise InvalidRequest("vault.address is not set", field="vault")
    return settings.server.organization
