"""What the commands that take something away share: telling a running controller, and saying what was done."""

from __future__ import annotations

from collections.abc import Sequence

import click

from shovey_trio.application.removal import Removed
from shovey_trio.cli.controller.host_audit import host_entry
from shovey_trio.cli.controller.offline_store import run_with_store
from shovey_trio.config.server import ServerSettings
from shovey_trio.core.audit.records import AuditAction
from shovey_trio.core.errors import NotFound
from shovey_trio.identity.names import Identity
from shovey_trio.store.contract import Store


def note_change(settings: ServerSettings) -> None:
    """Has a running controller read users, nodes, keys and certificates again at once."""
    settings.directory.changed.touch(mode=0o600)


def revoke_certificates(settings: ServerSettings, identity: Identity) -> None:
    """Voids every certificate of a principal, has a running controller know at once, and says so.

    Raises:
        NotFound: there is no certificate of theirs.
    """
    entry = host_entry(AuditAction.CERTIFICATES_REVOKED, identity.organization, identity.label)

    async def write(store: Store) -> Sequence[str]:
        return await store.revoke_certificates(identity.organization, identity.label, audit=entry)

    serials = run_with_store(settings.store_path, write)
    if not serials:
        raise NotFound(f"{identity.label} has no certificate", name=identity.name)
    note_change(settings)
    click.echo(f"{identity.label}: {len(serials)} certificate{'s are' if len(serials) > 1 else ' is'} void")


def removed_words(removed: Removed) -> str:
    """What was taken away with somebody."""
    parts = []
    if removed.certificates:
        parts.append(f"{removed.certificates} certificate{'s are' if removed.certificates > 1 else ' is'} void")
    if removed.chef_key:
        parts.append("no Chef key of it holds any more")
    if removed.unfinished:
        parts.append(unfinished_words(removed.unfinished))
    return ", ".join(parts) or "it had neither certificates nor Chef keys"


def unfinished_words(jobs: Sequence[str]) -> str:
    """What becomes of jobs whose nodes are gone."""
    what = f"job {jobs[0]}" if len(jobs) == 1 else f"{len(jobs)} jobs"
    return f"runs of {what} end as unavailable, or as crashed where they had begun"
