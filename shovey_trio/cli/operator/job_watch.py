"""``shovey job watch``: follow a job until it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shovey_trio.cli.operator.options import OperatorOptions, full_job_id
from shovey_trio.cli.text.output_formats import Format, output_option

if TYPE_CHECKING:
    from shovey_trio.cli.operator.session import ControllerSession
    from shovey_trio.core.errors import Exit


@click.command()
@click.argument("job_id", callback=full_job_id, metavar="ID")
@click.option("--no-output", is_flag=True, help="Do not show what the commands write.")
@output_option
@click.pass_obj
def watch(options: OperatorOptions, *, job_id: str, no_output: bool, output: Format | None) -> None:
    """Follow the job ID until it ends, from its first line of output on.

    The exit code says how the job ended. "jsonl" writes each event as it comes. Ctrl-C is as for "shovey job start".
    """
    from shovey_trio.cli.operator.attach import Attachment
    from shovey_trio.cli.operator.session import load_settings, run_session

    settings = load_settings(options)
    chosen = output or Format(settings.client.output)

    async def work(session: ControllerSession) -> Exit:
        found = await session.job_id(job_id)
        return await Attachment(session, found, chosen, include_output=not no_output).follow()

    run_session(settings, work)
