"""``shovey job output``: what a job's commands wrote, of one node as it is or of all nodes labelled."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from shovey_trio.cli.operator.options import OperatorOptions, fail_on_truncation_option, full_job_id
from shovey_trio.core.errors import Exit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shovey_trio.cli.operator.labelled_output import LineCollector
    from shovey_trio.cli.operator.session import ControllerSession
    from shovey_trio.rpc.bridge import RpcError
    from shovey_trio.v1.job_pb2 import OutputStream, Run
    from shovey_trio.v1.job_service_pb2 import WatchJobResponse


@click.command()
@click.argument("job_id", callback=full_job_id, metavar="ID")
@click.argument("node", required=False)
@click.option("--stream", type=click.Choice(["stdout", "stderr"]), help="Only this stream.  [default: both]")
@click.option("--follow/--no-follow", default=True, show_default=True, help="Go on until the runs end.")
@click.option("--raw", is_flag=True, help="The exact bytes of one NODE, on a terminal too.")
@fail_on_truncation_option
@click.option("--timestamps", is_flag=True, help="When the node read each line, by its clock, in front of it.")
@click.pass_obj
def output(
    options: OperatorOptions,
    *,
    job_id: str,
    node: str | None,
    stream: str | None,
    follow: bool,
    raw: bool,
    timestamps: bool,
    fail_on_truncation: bool,
) -> None:
    """Read what the commands of the job ID wrote, following it until the runs end.

    With NODE its output as it was written, stdout to stdout and stderr to stderr. Without, the lines of all nodes on
    stdout, each behind the name of its node.
    """
    if raw and (node is None or timestamps):
        raise click.UsageError("--raw takes a NODE and no --timestamps: labels and times are not the exact bytes")

    from shovey_trio.cli.operator.session import load_settings, run_session
    from shovey_trio.core.jobs.model import StreamName
    from shovey_trio.rpc.convert import STREAMS

    settings = load_settings(options)
    wanted = STREAMS.number(StreamName(stream) if stream else None)

    async def work(session: ControllerSession) -> Exit:
        found = await session.job_id(job_id)
        if node is None:
            cut = await _read_all(session, found, wanted, follow=follow, timestamps=timestamps)
        elif raw or not (timestamps or sys.stdout.isatty()):
            cut = await _copy_one(session, found, node, wanted, follow=follow)
        else:
            cut = await _read_one(session, found, node, wanted, follow=follow, timestamps=timestamps)
        return Exit.TRUNCATED if cut and fail_on_truncation else Exit.OK

    run_session(settings, work)


async def _read_all(
    session: ControllerSession, job_id: str, wanted: OutputStream.ValueType, *, follow: bool, timestamps: bool
) -> bool:
    """Show the output of all runs; return whether some of it is missing, as the others here do."""
    from shovey_trio.cli.operator.job_feed import Positions, feed_job, output_ends, replay_output
    from shovey_trio.cli.operator.job_view import run_ended
    from shovey_trio.cli.operator.labelled_output import LineCollector, LineStyle, label_width, write_line

    with session.call():
        ends = await output_ends(session.client, job_id)
    style = LineStyle(label_width=label_width(list(ends)), timestamps=timestamps)
    lines = LineCollector(lambda line: write_line(line, style))

    def handle(event: WatchJobResponse) -> None:
        match event.WhichOneof("event"):
            case "output" if wanted in {0, event.output.chunk.stream}:
                lines.feed(event.output.node, event.output.chunk)
                sys.stdout.flush()
            case "run_changed" if run_ended(event.run_changed.run):
                lines.end(event.run_changed.run)
                sys.stdout.flush()

    if follow:
        await feed_job(session.client, job_id, handle, include_output=True, on_lost=_say_lost)
    else:
        await replay_output(session.client, job_id, ends, handle, shown=Positions())
    lines.finish()
    with session.call():
        return _end(lines, await session.client.list_runs(job_id).take())


async def _read_one(
    session: ControllerSession,
    job_id: str,
    node: str,
    wanted: OutputStream.ValueType,
    *,
    follow: bool,
    timestamps: bool,
) -> bool:
    from shovey_trio.cli.operator.labelled_output import LineCollector, LineStyle, write_line

    style = LineStyle(label=False, timestamps=timestamps, split_streams=True)
    lines = LineCollector(lambda line: write_line(line, style))
    async with session.client.read_output(job_id, node, stream=wanted, follow=follow, on_lost=_say_lost) as responses:
        async for response in responses:
            lines.feed(node, response.chunk)
            sys.stdout.flush()
    lines.finish()
    with session.call():
        return _end(lines, [await session.client.get_run(job_id, node)])


async def _copy_one(
    session: ControllerSession, job_id: str, node: str, wanted: OutputStream.ValueType, *, follow: bool
) -> bool:
    from shovey_trio.cli.operator.job_view import output_missing
    from shovey_trio.cli.operator.labelled_output import INCOMPLETE_TEXT, gap_text
    from shovey_trio.v1.job_pb2 import OUTPUT_STREAM_STDERR

    async with session.client.read_output(job_id, node, stream=wanted, follow=follow, on_lost=_say_lost) as responses:
        async for response in responses:
            into = sys.stderr if response.chunk.stream == OUTPUT_STREAM_STDERR else sys.stdout
            into.buffer.write(response.chunk.data)
            into.flush()
    with session.call():
        run = await session.client.get_run(job_id, node)
    if run.dropped_bytes:
        click.echo(gap_text(run.dropped_bytes), err=True)
    if run.output_incomplete:
        click.echo(INCOMPLETE_TEXT, err=True)
    return output_missing(run)


def _end(lines: LineCollector, runs: Sequence[Run]) -> bool:
    """Say what is missing and was not said yet; return whether anything is."""
    from shovey_trio.cli.operator.job_view import output_missing

    for run in runs:
        lines.end(run)
    sys.stdout.flush()
    return any(output_missing(run) for run in runs)


def _say_lost(_: RpcError) -> None:
    click.echo("connection to the controller lost; resuming …", err=True)
