"""``shovey-trio audit``: the audit log, verified and exported, with the store of the controller's host."""

from __future__ import annotations

from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path

import click

from shovey_trio.application.audit_verify import (
    VerifiedAudit,
    export_line,
    read_all,
    verify_audit,
    verify_export,
)
from shovey_trio.cli.controller.offline_store import run_with_store
from shovey_trio.cli.controller.options import load_from_options, source_options, with_settings
from shovey_trio.config.server import ServerSettings
from shovey_trio.core.audit.records import GENESIS, AuditBroken, AuditHead, AuditRecord, parse_head
from shovey_trio.identity.audit_files import AuditFiles
from shovey_trio.identity.bootstrap import check_set_up
from shovey_trio.store.contract import Store

_FORMATS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S"]
_HEAD = click.option(
    "--head",
    "heads",
    multiple=True,
    metavar="SEQ:HASH",
    help="A head that was kept elsewhere and must be met; may be repeated.",
)


@click.group()
def audit() -> None:
    """The audit log, on the controller's host; the daemon may be running or not."""


@audit.command()
@_HEAD
@click.option("--runs", is_flag=True, help="Compare the runs of stored jobs with the record of each job's end, too.")
@click.option(
    "--file",
    "export",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Verify this export instead of the store; it needs nothing of the controller.",
)
@click.option("--unsigned", is_flag=True, help="Do without the signed head that is kept beside the store.")
@source_options
def verify(
    *,
    heads: tuple[str, ...],
    runs: bool,
    export: Path | None,
    unsigned: bool,
    config: Path | None,
    data_dir: Path | None,
    assignments: tuple[str, ...],
) -> None:
    """Find out whether the audit log is what was written.

    Reads every record and the signed head beside the store. Whoever owns the controller's host can make both anew:
    keep heads elsewhere, and give them with --head.
    """
    expected = [parse_head(head) for head in heads]
    if export is not None:
        with export.open(encoding="utf-8", errors="replace") as lines:
            _tell(verify_export(lines, expected=expected))
        return
    settings = load_from_options(config, data_dir, assignments)
    check_set_up(settings.directory)
    if not unsigned:
        expected.append(_signed_head(settings))

    async def work(store: Store) -> VerifiedAudit:
        return await verify_audit(store, expected=expected, runs=runs)

    _tell(run_with_store(settings.store_path, work))


@audit.command("export")
@click.option("--org", "organization", default="", metavar="NAME", help="Records of this organization.")
@click.option("--from", "since", type=click.DateTime(_FORMATS), help="From this time on (UTC).")
@click.option("--to", "until", type=click.DateTime(_FORMATS), help="Before this time (UTC).")
@with_settings
def export_(settings: ServerSettings, organization: str, since: datetime | None, until: datetime | None) -> None:
    """Write records to standard output, one JSON object a line, oldest first.

    Without --org each line also holds the hash of the record before it, so that the export can be verified by itself.
    The head goes to standard error: keep it.
    """

    async def work(store: Store) -> AuditHead:
        head = await store.audit_start()
        before: AuditRecord | None = None
        found = read_all(store, organization=organization, since=_unix(since), until=_unix(until))
        async with aclosing(found) as records:
            async for record in records:
                if not organization and before is None and record.seq != head.seq + 1:
                    [one_before] = await store.read_audit(after_seq=record.seq - 2, limit=1)
                    head = one_before.head
                click.echo(export_line(record, None if organization else head.hash))
                before, head = record, record.head
        return head if before is not None else GENESIS

    head = run_with_store(settings.store_path, work)
    if head.seq:
        click.echo(f"head {head}", err=True)


@audit.command("head")
@with_settings
def head_(settings: ServerSettings) -> None:
    """Show the log's present head, to be kept elsewhere and given to `verify --head`."""

    async def work(store: Store) -> AuditHead:
        return await store.audit_head()

    click.echo(str(run_with_store(settings.store_path, work)))


def _signed_head(settings: ServerSettings) -> AuditHead:
    signed = AuditFiles(settings.directory).read_head()
    if signed is None:
        raise AuditBroken(
            f"{settings.directory.audit_head} is missing: the log has never been signed, or somebody took it; "
            "--unsigned does without"
        )
    return signed.head


def _tell(verified: VerifiedAudit) -> None:
    jobs = f", the runs of {verified.jobs} jobs" if verified.jobs else ""
    click.echo(f"{verified.records} records hold, {verified.start.seq + 1} to {verified.head.seq}{jobs}")
    click.echo(f"head {verified.head}")


def _unix(at: datetime | None) -> float | None:
    return None if at is None else at.replace(tzinfo=UTC).timestamp()
