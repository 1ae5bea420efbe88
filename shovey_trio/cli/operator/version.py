"""``shovey version``: what runs here, what runs there, and who it thinks we are."""

from __future__ import annotations

from importlib.metadata import version as installed
from typing import TYPE_CHECKING

import click

from shovey_trio.cli.operator.options import OperatorOptions
from shovey_trio.cli.text.output_formats import Format, output_option, write_document
from shovey_trio.core.errors import Exit

if TYPE_CHECKING:
    from shovey_trio.cli.operator.session import ControllerSession


@click.command()
@output_option
@click.pass_obj
def version(options: OperatorOptions, *, output: Format | None) -> None:
    """Show the versions of this client and of the controller, and who you are there."""
    from shovey_trio.cli.operator.session import load_settings, run_session
    from shovey_trio.cli.text.plain import plain_message
    from shovey_trio.cli.text.terminal_text import printable
    from shovey_trio.identity.user_certificate import moment

    client = installed("shovey-trio")
    settings = load_settings(options)
    chosen = output or Format(settings.client.output)
    if chosen is Format.TABLE:
        click.echo(f"client      {client}")  # also when the controller cannot be reached

    async def work(session: ControllerSession) -> Exit:
        with session.call():
            info = await session.client.get_server_info()
        own = settings.read_certificate()
        until = own.leaf.not_valid_after_utc.isoformat().replace("+00:00", "Z")
        match chosen:
            case Format.TABLE:
                click.echo(f"controller  {printable(info.version)} at {settings.client.server}")
                click.echo(f"you are     {printable(info.caller)} of {printable(info.organization)}")
                if info.clock_steps:
                    click.echo(f"its clock   was set {info.clock_steps} times since it started")
                click.echo(f"certificate {own.file}, until {moment(own.expires_at)}")
            case Format.NAME:
                click.echo(info.version)
            case _:
                write_document(
                    {"client": client, "server": plain_message(info), "certificate_expires_at": until}, chosen
                )
        return Exit.OK

    run_session(settings, work)
