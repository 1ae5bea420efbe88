"""The command line of ``shovey-trio``: a group whose commands are imported when they are called, and not before.

One file per command (``daemon_NAME.py``). The table below holds what ``--help`` shows, so that help and completion
import nothing of the daemon.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

import click

from shovey_trio.cli.text.lazy_group import LazyGroup
from shovey_trio.core.errors import Exit, ShoveyError

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
        "audit": ("shovey_trio.cli.controller.audit:audit", "The audit log: verify and export it."),
        "import": ("shovey_trio.shovey.cli.import_:import_", "Users, keys and nodes from another server."),
        "demo": ("shovey_trio.cli.controller.demo:demo", "Show the main job with real processes on loopback."),
        "bench": (
            "shovey_trio.cli.controller.bench:bench",
            "Measure this version on this machine, with simulated agents.",
        ),
        "doctor": ("shovey_trio.cli.controller.doctor:doctor", "Check a set-up and say what to do."),
    }
)
# What `pip install shovey-trio[server]` brings beyond the base install.
_SERVER_EXTRA: Final = frozenset({"h11", "httpx2", "luqum", "sqlalchemy", "alembic", "grpc_health", "grpc_reflection"})
_INTERRUPTED: Final = 130  # 128 + SIGINT, as shells report it


@click.command(cls=LazyGroup, commands_at=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="shovey-trio", prog_name="shovey-trio")
def cli() -> None:
    """The shovey-trio controller and its offline administration."""


def run(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code; errors that are somebody's to act on become one line, not a trace."""
    try:
        result = cli.main(list(arguments), prog_name="shovey-trio", standalone_mode=False)
    except click.ClickException as exc:
        exc.show()
        return exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _INTERRUPTED
    except ShoveyError as exc:
        click.echo(f"error: {exc.message}", err=True)
        return exc.exit.value
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] not in _SERVER_EXTRA:
            raise
        click.echo(
            f"error: {exc.name} is not installed; a controller needs: pip install 'shovey-trio[server]'", err=True
        )
        return Exit.USAGE.value
    except OSError as exc:
        click.echo(f"error: {exc}", err=True)
        return Exit.INTERNAL.value
    return result if isinstance(result, int) else 0


def main() -> None:
    """Entry point."""
    sys.exit(run(sys.argv[1:]))
