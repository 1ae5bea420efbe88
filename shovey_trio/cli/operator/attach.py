"""Being attached to a job: follow it to its end, and what Ctrl-C means meanwhile.

The first Ctrl-C asks: left alone for two seconds it detaches, and the job goes on without us. The second within these
two seconds cancels the job, and we wait for the nodes' proof. The third leaves at once. SIGTERM detaches.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import Final

import click
import trio

from shovey_trio.cli.operator.displays import Display, EventsDisplay, PlainDisplay, QuietDisplay
from shovey_trio.cli.operator.job_feed import feed_job
from shovey_trio.cli.operator.job_view import JobView
from shovey_trio.cli.operator.session import ControllerSession
from shovey_trio.cli.text.failures import failure_of
from shovey_trio.cli.text.output_formats import Format, write_document
from shovey_trio.cli.text.plain import plain_message
from shovey_trio.core.errors import Exit, ShoveyError
from shovey_trio.rpc.bridge import RpcError
from shovey_trio.v1.job_service_pb2 import WatchJobResponse

# Seconds in which a second Ctrl-C means: cancel the job.
SECOND_THOUGHTS: Final = 2.0
_TICK: Final = 0.1


class Attachment:
    """An attached command: one job, one display, the signals."""

    def __init__(self, session: ControllerSession, job_id: str, output: Format, *, include_output: bool) -> None:
        self._view = JobView()
        self._session = session
        self._job_id = job_id
        # Only these two show output; the others write the result at the end.
        self._include_output = include_output and output in {Format.TABLE, Format.JSONL}
        self._output = output
        self._display = _display(output, self._view)
        self._left: Exit | None = None

    async def follow(self, *, fail_on_truncation: bool = False) -> Exit:
        """Follow the job until it ends or a signal ends that; return the exit code of the command.

        Formats that show one result show it when the job has ended.

        Raises:
            Unreachable, RpcError: the job cannot be followed (any more).
        """
        how_to_return = f"come back with: shovey job watch {self._job_id}"
        try:
            with self._display, trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._obey, signals, nursery)
                    nursery.start_soon(self._tick)
                    await feed_job(
                        self._session.client,
                        self._job_id,
                        self._take,
                        include_output=self._include_output,
                        on_lost=lambda _: self._display.note("connection to the controller lost; resuming …"),
                    )
                    nursery.cancel_scope.cancel(reason="the job has ended")
        except* (ShoveyError, RpcError):
            if self._view.job.id:
                click.echo(f"no longer attached; {how_to_return}", err=True)
            raise
        if self._left is not None:
            click.echo(f"{_FAREWELLS[self._left]}; {how_to_return}", err=True)
            return self._left
        await self._write_result()
        return self._view.exit(fail_on_truncation=fail_on_truncation)

    def _take(self, event: WatchJobResponse) -> None:
        self._display.show(event, self._view.apply(event))

    async def _write_result(self) -> None:
        if self._output is Format.NAME:
            click.echo(self._view.job.id)
        elif self._output in {Format.JSON, Format.YAML}:
            # Asked for again: the runs of a watch do not carry how much output there is.
            with self._session.call():
                job = await self._session.client.get_job(self._job_id)
                runs = await self._session.client.list_runs(self._job_id).take()
            write_document({"job": plain_message(job), "runs": [plain_message(run) for run in runs]}, self._output)

    async def _tick(self) -> None:
        while True:
            self._display.tick()
            await trio.sleep(_TICK)

    async def _obey(self, signals: AsyncIterator[int], nursery: trio.Nursery) -> None:
        if await anext(signals) == signal.SIGINT:
            self._display.note(f"detaching in {SECOND_THOUGHTS:g} s – press Ctrl-C again to cancel the job")
            second = None
            with trio.move_on_after(SECOND_THOUGHTS):
                second = await anext(signals)
            if second == signal.SIGINT:
                self._display.note("cancelling the job, waiting for the nodes' proof – Ctrl-C leaves at once")
                nursery.start_soon(self._cancel)
                await anext(signals)
                self._leave(Exit.INTERRUPTED, nursery)
                return
        self._leave(Exit.DETACHED, nursery)

    def _leave(self, code: Exit, nursery: trio.Nursery) -> None:
        self._left = code
        nursery.cancel_scope.cancel(reason="the operator leaves")

    async def _cancel(self) -> None:
        try:
            with self._session.call():
                await self._session.client.cancel_job(self._job_id)
        except (ShoveyError, RpcError) as error:
            failed = failure_of(error)
            self._display.note(f"the job was not cancelled: {failed.message if failed else error}")


_FAREWELLS: Final = {
    Exit.DETACHED: "detached, the job goes on",
    Exit.INTERRUPTED: "left while the job is being cancelled",
}


def _display(output: Format, view: JobView) -> Display:
    match output:
        case Format.JSONL:
            return EventsDisplay()
        case Format.TABLE if sys.stdout.isatty() and not _is_dumb():
            from shovey_trio.cli.operator.live import LiveDisplay

            return LiveDisplay(view)
        case Format.TABLE:
            return PlainDisplay(view)
        case _:
            return QuietDisplay()


def _is_dumb() -> bool:
    return os.environ.get("TERM", "dumb") == "dumb"
