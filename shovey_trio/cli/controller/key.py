"""``shovey-trio key``: the keys that orders are signed with and the root key above them, on the controller's host."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from shovey_trio.application.audit import keys_entry, record
from shovey_trio.cli.controller.offline_store import change_store
from shovey_trio.cli.controller.options import for_organization
from shovey_trio.cli.text.output_formats import Format, Row, output_option, row_shape, write_listing
from shovey_trio.config.server import ServerSettings
from shovey_trio.config.types import format_duration, parse_duration
from shovey_trio.core.errors import NotFound
from shovey_trio.core.trust.key_rotation import DEFAULT_OVERLAP
from shovey_trio.core.trust.key_sets import KeySet, decode_key_set, key_id_of, sign_key_set
from shovey_trio.identity.files import (
    check_secret_directory,
    read_public,
    read_secret,
    sync_directory,
    write_public,
    write_secret,
)
from shovey_trio.identity.root_keys import Change, KeyRing, load_root_key, revocation, rotation
from shovey_trio.identity.signing_keys import SigningKeys

_FILE = click.Path(path_type=Path, resolve_path=True, dir_okay=False)
_PROPOSAL = click.option(
    "--out", type=_FILE, metavar="FILE", help="Only write what the root key is to sign: it is kept elsewhere."
)


_SHORTEST_OVERLAP = 900.0
_LONGEST_OVERLAP = 30 * 86_400.0


def overlap_duration(_ctx: click.Context, _param: click.Parameter, value: str) -> float:
    """Click's view of ``parse_duration``, longer than orders are under way and not for ever."""
    try:
        seconds = parse_duration(value)
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from exc
    if not _SHORTEST_OVERLAP <= seconds <= _LONGEST_OVERLAP:
        shortest, longest = format_duration(_SHORTEST_OVERLAP), format_duration(_LONGEST_OVERLAP)
        raise click.BadParameter(f"expected {shortest} to {longest}; to end a key at once, revoke it")
    return seconds


@click.group()
def key() -> None:
    """The keys that orders are signed with, and the root key above them; the daemon may be running or not."""


@key.command("list")
@output_option
@for_organization
def list_(settings: ServerSettings, output: Format | None) -> None:
    """List the signing keys, since when each may sign and until when it is believed; then the root key above them."""
    ring = _ring(settings)
    keys = ring.ensure_root(time.time())
    rows: list[Row] = [
        {
            "key_id": known.key_id,
            "state": known.state.value,
            "since": _moment(known.not_before),
            "until": None if known.not_after is None else _moment(known.not_after),
            "place": "here",
        }
        for known in keys.keys.keys
    ]
    place = "here" if ring.root_key_path.exists() else "kept elsewhere"
    root_id = key_id_of(keys.root_public_key)
    rows.append({"key_id": root_id, "state": "root", "since": None, "until": None, "place": place})
    write_listing(rows, row_shape("KEY ID", "STATE", "SINCE", "UNTIL", "PLACE", nothing="no keys"), output)


@key.command()
@click.option(
    "--overlap",
    callback=overlap_duration,
    default=format_duration(DEFAULT_OVERLAP),
    show_default=True,
    metavar="DURATION",
    help="How long the key of before goes on being believed.",
)
@_PROPOSAL
@for_organization
def rotate(settings: ServerSettings, overlap: float, out: Path | None) -> None:
    """Sign with a new key from now on. Nothing that is under way fails: the key of before is believed for a while."""
    _change(settings, rotation(time.time(), overlap), out)


@key.command()
@click.argument("key_id")
@_PROPOSAL
@for_organization
def revoke(settings: ServerSettings, key_id: str, out: Path | None) -> None:
    """Have nobody believe KEY_ID any more, at once: it was stolen, or may have been.

    If it is the key that signs, a new one takes its place.
    """
    _change(settings, revocation(key_id, time.time()), out)


@key.command("import")
@click.argument("file", type=_FILE)
@for_organization
def import_(settings: ServerSettings, file: Path) -> None:
    """Put a proposal into force that the root key has signed (`key root sign`)."""
    _ring(settings).load()
    signed = read_public(file)

    def change() -> SigningKeys:
        return _ring(settings).import_signed(signed)

    _carry_out(settings, change)


@key.group()
def root() -> None:
    """The organization's root key: it signs which keys may sign, and nothing else."""


@root.command()
@click.argument("file", type=_FILE)
@click.option("--keep", is_flag=True, help="Leave it here too: FILE is a copy for safe keeping.")
@for_organization
def export(settings: ServerSettings, file: Path, keep: bool) -> None:
    """Move the root key to FILE (0600), to be kept where the controller is not; changes of keys need it then."""
    ring = _ring(settings)
    ring.ensure_root(time.time())
    if not ring.root_key_path.exists():
        raise NotFound(f"the root key of {ring.organization} is not here")
    if file.exists():
        raise FileExistsError(f"{file} exists")
    write_secret(file, read_secret(ring.root_key_path))
    if not keep:
        ring.root_key_path.unlink()
        sync_directory(ring.root_key_path.parent)
    _record(settings, ring.load().keys, root_key="copied" if keep else "moved away")
    click.echo(f"{file} holds the root key of {ring.organization}{'' if keep else ', and the controller does not'}.")
    if not keep:
        click.echo("Changes from now on: key rotate --out FILE; key root sign, where the root key is; key import.")


@root.command()
@click.argument("proposal", type=_FILE)
@click.option("--key", "root_key", type=_FILE, required=True, metavar="FILE", help="The root key, as exported.")
@click.option("--out", type=_FILE, required=True, metavar="FILE", help="The signed set, for `key import`.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def sign(proposal: Path, root_key: Path, out: Path, yes: bool) -> None:
    """Sign a PROPOSAL of `key rotate --out` or `key revoke --out`; needs no controller and no data directory."""
    body = read_public(proposal)
    keys = decode_key_set(body)
    for line in _words(keys):
        click.echo(line, err=True)
    if not yes:
        click.confirm("Sign this?", abort=True, err=True)
    write_public(out, sign_key_set(body, load_root_key(root_key)))
    click.echo(f"{out}: take it to the controller: shovey-trio key import {out.name}")


def _change(settings: ServerSettings, change: Change, out: Path | None) -> None:
    ring = _ring(settings)
    ring.ensure_root(time.time())
    if out is None:
        _carry_out(settings, lambda: ring.apply(change))
        return
    body = ring.propose(change)
    write_public(out, body)
    for line in _words(decode_key_set(body)):
        click.echo(line, err=True)
    click.echo(f"{out}: sign it where the root key is: shovey-trio key root sign {out.name} --key FILE --out FILE")


def _carry_out(settings: ServerSettings, change: Callable[[], SigningKeys]) -> None:
    keys = change()
    # After the fact: a record of a change that failed would be the greater lie.
    _record(settings, keys.keys)
    for line in _words(keys.keys):
        click.echo(line)
    click.echo("A running controller takes it up at once, and tells every agent that is attached.")


def _words(keys: KeySet) -> list[str]:
    lines = [f"organization {keys.organization}, key set {keys.serial}:"]
    for known in keys.keys:
        until = "" if known.not_after is None else f", until {_moment(known.not_after)}"
        lines.append(f"  {known.key_id}  {known.state}, since {_moment(known.not_before)}{until}")
    return lines


def _record(settings: ServerSettings, keys: KeySet, **detail: Any) -> None:
    change_store(settings, lambda store, actor: record(store, keys_entry(actor, keys, **detail)), tell=False)


def _ring(settings: ServerSettings) -> KeyRing:
    check_secret_directory(settings.directory.root)
    return KeyRing(settings.directory, settings.server.organization)


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
