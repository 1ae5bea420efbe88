"""The command line of ``shovey-trio``: a group whose commands are imported when they are called, and not before.

One file per command. The table below holds what ``--help`` shows, so that help and completion
import nothing of the daemon.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

import click

from shovey_trio.cli.text.lazy_group import LazyGroup
from shovey_trio.cli.text.program import run_program
from shovey_trio.core.errors import Exit

_COMMANDS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "init": ("shovey_trio.cli.controller.init:init", "Set up a data directory: CA, keys, store, first admin."),
        "serve": ("shovey_trio.cli.controller.serve:serve", "Run the controller."),
        "org": ("shovey_trio.cli.controller.org:org", "Organizations, on the controller's host."),
        "node": ("shovey_trio.cli.controller.node:node", "Nodes, their enrolment and keys, on the controller's host."),
        "key": ("shovey_trio.cli.controller.key:key", "Keys that orders are signed with, on the controller's host."),
        "legacy": ("shovey_trio.shovey.cli.legacy:legacy", "Keys for old nodes (schob), on the controller's host."),
        "user": ("shovey_trio.cli.controller.user:user", "Users, certificates and keys, on the controller's host."),
        "vault": ("shovey_trio.cli.controller.vault:vault", "Keys in Vault or OpenBao."),
        "store": ("shovey_trio.cli.controller.store:store", "The store: read all of it and name what is damaged."),
        "backup": ("shovey_trio.cli.controller.backup:backup", "Write store, keys and settings to one file."),
        "restore": ("shovey_trio.cli.controller.backup:restore", "Put a backup back."),
        "audit": ("shovey_trio.cli.controller.audit:audit", "The audit log: verify and export it."),
        "import": ("shovey_trio.shovey.cli.import_:import_", "Users, keys and nodes from another server."),
        "demo": ("shovey_trio.cli.controller.demo:demo", "Show the main job with real processes on loopback."),
        "bench": (
            "shovey_trio.cli.controller.bench:bench",
            "Measure this version on this machine, with simulated agents.",
        ),
        "install-units": (
            "shovey_trio.cli.controller.install_units:install_units",
            "Install systemd's units, their accounts and a first whitelist.",
        ),
        "doctor": ("shovey_trio.cli.controller.doctor:doctor", "Check a set-up and say what to do."),
    }
)
# What `pip install shovey-trio[server]` brings beyond the base install.
_SERVER_EXTRA: Final = frozenset({"h11", "httpx2", "luqum", "sqlalchemy", "alembic", "grpc_health", "grpc_reflection"})


@click.command(cls=LazyGroup, commands_at=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="shovey-trio", prog_name="shovey-trio")
def cli() -> None:
    """The shovey-trio controller and its offline administration."""


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    return run_program(cli, "shovey-trio", arguments, explain=_missing_extra)


def main() -> None:
    """Entry point."""
    sys.exit(run(sys.argv[1:]))


def _missing_extra(error: BaseException) -> click.ClickException | None:
    if not isinstance(error, ModuleNotFoundError) or (error.name or "").partition(".")[0] not in _SERVER_EXTRA:
        return None
    from shovey_trio.cli.text.failures import Failed

    return Failed(
        f"{error.name} is not installed",
        reason="NOT_INSTALLED",
        exit=Exit.USAGE,
        advice="a controller needs: pip install 'shovey-trio[server]'",
    )
