"""The command line of ``shovey``: groups, and the options that say which controller and as whom.

One file per command (``job_start.py``, ``node_list.py`` …). The tables below hold what ``--help`` shows; nothing else
is imported for it: the whole of grpc, trio and rich is loaded by the command that needs it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import click

from shovey_trio.cli.operator.options import OperatorOptions
from shovey_trio.cli.text.lazy_group import LazyGroup
from shovey_trio.cli.text.program import run_program

_JOB: Final = {
    "start": ("shovey_trio.cli.operator.job_start:start", "Start a job and follow it."),
    "list": ("shovey_trio.cli.operator.job_list:list_jobs", "List jobs, newest first."),
    "status": ("shovey_trio.cli.operator.job_status:status", "Show a job and each of its runs."),
    "watch": ("shovey_trio.cli.operator.job_watch:watch", "Follow a job until it ends."),
    "output": ("shovey_trio.cli.operator.job_output:output", "Read what a job's commands wrote."),
    "cancel": ("shovey_trio.cli.operator.job_cancel:cancel", "Cancel a job and wait for the proof."),
}
_NODE: Final = {
    "list": ("shovey_trio.cli.operator.node_list:list_nodes", "List the registered nodes."),
    "status": ("shovey_trio.cli.operator.node_status:status", "Show which nodes are up, and why."),
}
_LOGIN: Final = {
    "renew": ("shovey_trio.cli.operator.login_renew:renew", "Exchange your certificate for a fresh one."),
}
_ROOT: Final = {
    "job": ("shovey_trio.cli.operator.main:job", "Start, follow and cancel jobs."),
    "node": ("shovey_trio.cli.operator.main:node", "See nodes and whether they are up."),
    "login": ("shovey_trio.cli.operator.main:login", "Your certificate."),
    "explain": ("shovey_trio.cli.operator.explain:explain", "Say whether a command would run, and why."),
    "version": ("shovey_trio.cli.operator.version:version", "Show the versions of client and controller."),
}
_HELP: Final = {"help_option_names": ["-h", "--help"]}
_PATH: Final = click.Path(path_type=Path)


@click.command(cls=LazyGroup, commands_at=_ROOT, context_settings=_HELP)
@click.option("--config", type=_PATH, help="Configuration file, or the client directory it is in. [env: SHOVEY_CONFIG]")
@click.option("--server", metavar="HOST:PORT", help="Control address of the controller. [env: SHOVEY__CLIENT__SERVER]")
@click.option("--server-name", metavar="NAME", help="Name to check the controller's certificate for.")
@click.option("--ca", "ca_file", type=_PATH, help="PEM file that the controller's certificate chains to.")
@click.option("--cert", "certificate_file", type=_PATH, help="PEM file with your certificate.")
@click.option("--key", "key_file", type=_PATH, help="PEM file with its private key.")
@click.version_option(package_name="shovey-trio", prog_name="shovey")
@click.pass_context
def cli(ctx: click.Context, /, *, config: Path | None, **flags: object) -> None:
    """Run jobs on fleets of nodes, now.

    Settings come from the configuration file, then the environment, then these options; docs/configuration.md lists
    them. Durations are written as 90, 90s, 15m or 2h. A job is named by its full id, or by "last" for your newest.
    """
    ctx.obj = OperatorOptions(
        config=config, overrides=tuple((f"client.{key}", value) for key, value in flags.items() if value is not None)
    )


@click.command(cls=LazyGroup, commands_at=_JOB)
def job() -> None:
    """Start, follow and cancel jobs."""


@click.command(cls=LazyGroup, commands_at=_NODE)
def node() -> None:
    """See nodes and whether they are up."""


@click.command(cls=LazyGroup, commands_at=_LOGIN)
def login() -> None:
    """Your certificate, by which the controller knows you."""


def main() -> None:
    """Entry point."""
    sys.exit(run_program(cli, "shovey", sys.argv[1:], explain=_missing_files))


def _missing_files(error: BaseException) -> click.ClickException | None:
    from shovey_trio.cli.text.failures import Failed
    from shovey_trio.identity.files import FileUnusable

    if not isinstance(error, FileUnusable):
        return None
    advice = "name your client directory (`shovey-trio user cert` makes it) by --config or SHOVEY_CONFIG"
    return Failed(error.message, reason=error.reason, exit=error.exit, advice=advice)
