"""The audit entries of commands on the controller's host: whoever runs them owns the data directory."""

from __future__ import annotations

import getpass
import os
import time

import click

from shovey_trio.core.audit.records import AuditEntry, AuditOutcome


def host_entry(action: str, organization: str, subject: str, **detail: object) -> AuditEntry:
    """The entry of the command that is being run, by the account that runs it (as sudo tells it, where it does)."""
    context = click.get_current_context(silent=True)
    account = os.environ.get("SUDO_USER") or _account()
    return AuditEntry(
        at=time.time(),
        organization=organization,
        action=action,
        outcome=AuditOutcome.ALLOWED,
        principal=f"host/{account}",
        method="" if context is None else context.command_path,
        peer="host",
        rule="owner of the data directory",
        subject=subject,
        detail=detail,
    )


def _account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.geteuid()}"
