"""``shovey-trio store``: the store's file, on the controller's host."""

from __future__ import annotations

import click

from shovey_trio.cli.controller.offline_store import run_with_store
from shovey_trio.cli.controller.options import with_settings
from shovey_trio.config.server import ServerSettings
from shovey_trio.core.errors import Exit, StoreCorrupt
from shovey_trio.store.contract import Store

# Lines of damage that are shown; a disk that fails brings thousands.
_SHOWN = 200


@click.group()
def store() -> None:
    """The store, on the controller's host; the daemon may be running or not."""


@store.command()
@with_settings
def check(settings: ServerSettings) -> int:
    """Read everything that is stored and name what is damaged. Nothing is changed; exit code 12 if something is.

    Reads all pages, all rows and the chain of the audit log. `audit verify` also compares the log with its signed head.
    """
    from shovey_trio.application.audit_verify import verify_audit
    from shovey_trio.core.audit.records import AuditBroken
    from shovey_trio.store.sqlite.check import check_file

    damage = []

    async def verify(store: Store) -> int:
        try:
            return (await verify_audit(store, expected=(), runs=False)).records
        except AuditBroken as error:
            damage.append(f"audit log: {error.message}")
            return 0

    try:
        records = run_with_store(settings.store_path, verify)
    except StoreCorrupt as error:
        records = 0
        damage.append(error.message)
    report = check_file(settings.store_path)
    damage += report.damage
    for line in damage[:_SHOWN]:
        click.echo(line)
    if len(damage) > _SHOWN:
        click.echo(f"… and {len(damage) - _SHOWN} more")
    read = f"{report.rows + records} rows read"
    unchecked = f", {report.unchecked} without a checksum (written by an older version)" if report.unchecked else ""
    click.echo(f"{read}{unchecked}: {f'{len(damage)} damaged' if damage else 'nothing is damaged'}")
    return int((Exit.DAMAGED if damage else Exit.OK).value)
