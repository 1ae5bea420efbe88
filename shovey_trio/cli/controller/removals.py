"""What the commands that take something away share: saying what was done."""

from __future__ import annotations

from collections.abc import Sequence

import click

from shovey_trio.application.credentials import revoke_certificates
from shovey_trio.application.removal import Removed
from shovey_trio.cli.controller.offline_store import change_store
from shovey_trio.config.server import ServerSettings
from shovey_trio.identity.names import Identity


def revoke_all(settings: ServerSettings, identity: Identity) -> None:
    """Voids every certificate of a principal, and says so.

    Raises:
        NotFound: there is no certificate of theirs.
    """
    serials = change_store(settings, lambda store, actor: revoke_certificates(store, actor, identity))
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
