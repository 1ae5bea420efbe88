"""``shovey job cancel``: cancel a job or some of its runs, and wait for the proof."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import click

from shovey_trio.cli.operator.options import OperatorOptions, full_job_id
from shovey_trio.cli.text.output_formats import Format, output_option, write_document, write_listing
from shovey_trio.core.errors import Exit

if TYPE_CHECKING:
    from shovey_trio.cli.operator.session import ControllerSession
    from shovey_trio.v1.job_service_pb2 import CancelJobResponse


@click.command()
@click.argument("job_id", callback=full_job_id, metavar="ID")
@click.argument("nodes", nargs=-1, metavar="[NODE]...")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until each run has ended, with proof.")
@output_option
@click.pass_obj
def cancel(options: OperatorOptions, *, job_id: str, nodes: tuple[str, ...], wait: bool, output: Format | None) -> None:
    """Cancel the job ID, or its runs on the given nodes alone.

    A run counts as cancelled only when its node has proven that the whole process tree is gone; the kind of proof is
    shown. The exit code is 1 if a run ended without such certainty. Ctrl-C ends the waiting, not the cancel.
    """
    from shovey_trio.cli.operator.job_status import run_shape
    from shovey_trio.cli.operator.job_view import run_proven_gone
    from shovey_trio.cli.operator.session import load_settings, run_session

    settings = load_settings(options)
    chosen = output or Format(settings.client.output)

    async def work(session: ControllerSession) -> Exit:
        found = await session.job_id(job_id)
        with session.call():
            answer = await session.client.cancel_job(found, nodes)
        _say_requested(answer)
        if not wait:
            if chosen in {Format.JSON, Format.JSONL, Format.YAML}:
                _write_requested(answer, chosen)
            return Exit.OK
        if not answer.cancelling:
            click.echo("nothing was left to cancel", err=True)
            return Exit.OK
        await _wait_until_ended(session, found, answer.cancelling)
        with session.call():
            runs = [run async for run in session.client.list_runs(found) if run.node in answer.cancelling]
        write_listing(runs, run_shape(), chosen)
        return Exit.OK if all(map(run_proven_gone, runs)) else Exit.RUNS_FAILED

    run_session(settings, work)


async def _wait_until_ended(session: ControllerSession, job_id: str, nodes: Collection[str]) -> None:
    """Return when the runs of ``nodes`` are terminal."""
    from shovey_trio.cli.operator.job_view import JobView, run_ended

    view = JobView()
    waiting = set(nodes)
    async with session.client.watch_job(job_id) as events:
        async for event in events:
            waiting -= {run.node for run in view.apply(event) if run_ended(run)}
            if not waiting:
                break


def _say_requested(answer: CancelJobResponse) -> None:
    from shovey_trio.cli.text.terminal_text import printable

    for nodes, what in ((answer.cancelling, "cancelling"), (answer.already_finished, "already ended")):
        if nodes:
            click.echo(f"{what}: {printable(', '.join(nodes))}", err=True)


def _write_requested(answer: CancelJobResponse, output: Format) -> None:
    from shovey_trio.cli.text.plain import plain_message

    write_document(plain_message(answer), output)
