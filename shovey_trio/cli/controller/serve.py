"""``shovey-trio serve``: runs the controller until it is told to stop."""

from __future__ import annotations

import click

from shovey_trio.cli.controller.options import with_settings
from shovey_trio.config.server import ServerSettings


@click.command()
@click.option(
    "--restored",
    is_flag=True,
    help="Accept, this once, a store that was put back from an older copy: enrolment tokens are void, what was revoked "
    "stays revoked, runs that the copy does not know the end of are asked for and never started again.",
)
@click.option(
    "--trust-clock",
    is_flag=True,
    help="Believe this host's clock though it is more than a day ahead of all that is stored: old history is deleted "
    "by it again.",
)
@with_settings
def serve(settings: ServerSettings, *, restored: bool, trust_clock: bool) -> None:
    """Run the controller in the foreground. TERM drains and stops, HUP reloads certificates and keys."""
    from shovey_trio.controller.daemon import run  # grpc and the store: not for --help or for bad settings

    run(settings, restored=restored, trust_clock=trust_clock)
