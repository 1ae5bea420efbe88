"""One command of ``shovey`` from settings to exit code: the only place where it starts trio and opens the client."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import click
import trio

from shovey_trio.cli.operator.options import LAST_JOB, OperatorOptions
from shovey_trio.cli.operator.reach import why_unreachable
from shovey_trio.cli.text.failures import Failed
from shovey_trio.config.operator import ClientSettings, find_client_file, load_client_settings
from shovey_trio.core.errors import Exit, NotFound, Unreachable, first_leaf
from shovey_trio.identity.authority import DAY
from shovey_trio.identity.user_certificate import UserCertificate, moment
from shovey_trio.rpc.bridge import ClientTls
from shovey_trio.rpc.client.client import ShoveyClient, open_client


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerSession:
    """An open client and the settings it was opened with."""

    client: ShoveyClient
    settings: ClientSettings

    @contextmanager
    def call(self) -> Iterator[None]:
        """Bound the calls in the block, which follow nothing, by the configured deadline.

        Raises:
            Unreachable: the deadline has passed.
        """
        section = self.settings.client
        try:
            with trio.fail_after(section.call_deadline):
                yield
        except trio.TooSlowError:
            raise Unreachable(
                f"the controller at {section.server} did not answer within {section.call_deadline:g} s"
            ) from None

    async def job_id(self, given: str) -> str:
        """The id that ``given`` stands for.

        Raises:
            NotFound: ``last``, and the caller has started no job.
        """
        if given != LAST_JOB:
            return given
        with self.call():
            caller = (await self.client.get_server_info()).caller
            newest = await self.client.list_jobs(created_by=caller, page_size=1).take(1)
        if not newest:
            raise NotFound(f"{caller} has started no job yet")
        return newest[0].id


def load_settings(options: OperatorOptions) -> ClientSettings:
    """The settings for this invocation.

    Raises:
        ConfigurationInvalid: they are wrong; everything that is wrong is named.
    """
    file = find_client_file(flag=options.config, environ=os.environ)
    # A path on the command line is relative to where it was typed, not to the configuration file.
    overrides = tuple((key, value.absolute() if isinstance(value, Path) else value) for key, value in options.overrides)
    return load_client_settings(file, environ=os.environ, overrides=overrides)


def run_session(settings: ClientSettings, work: Callable[[ControllerSession], Awaitable[Exit]]) -> NoReturn:
    """Run ``work`` with an open client and leave with its exit code.

    Ctrl-C cancels ``work``, unless it has a signal receiver of its own.

    Raises:
        click.exceptions.Exit: always, unless the controller or the settings are at fault.
    """
    section = settings.client
    own = settings.read_certificate()
    own.check(time.time())
    _warn_of_end(own)

    async def run() -> Exit:
        tls = ClientTls(ca=own.ca, certificate=own.chain, private_key=own.private_key)
        code = Exit.INTERRUPTED
        # Not KeyboardInterrupt: it would be raised wherever trio happens to be, in the middle of grpc's loop too.
        with trio.open_signal_receiver(signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_leave_at, signals, nursery.cancel_scope)
                async with open_client(section.server, tls, server_name=section.server_name) as client:
                    code = await work(ControllerSession(client=client, settings=settings))
                nursery.cancel_scope.cancel(reason="the command is done")
        return code

    try:
        code = trio.run(run)
    except* Unreachable as lost:
        said = first_leaf(lost)
        assert isinstance(said, Unreachable)  # nothing else is caught here
        advice = trio.run(why_unreachable, section, own)
        raise Failed(said.message, reason=Unreachable.reason, exit=Exit.UNREACHABLE, advice=advice) from None
    raise click.exceptions.Exit(code.value)


def _warn_of_end(own: UserCertificate) -> None:
    if own.is_due(time.time()):
        left = int((own.expires_at - time.time()) / DAY)
        click.echo(
            f"warning: {own} expires on {moment(own.expires_at)}, in {left} days; renew it: shovey login renew",
            err=True,
        )


async def _leave_at(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    await anext(signals)
    scope.cancel(reason="Ctrl-C")
