"""``shovey job status``: a job and each of its runs, as they are now."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from shovey_trio.cli.operator.options import OperatorOptions, full_job_id
from shovey_trio.cli.text.output_formats import Column, Format, Shape, output_option, write_document, write_listing
from shovey_trio.core.errors import Exit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shovey_trio.cli.operator.session import ControllerSession
    from shovey_trio.v1.job_pb2 import Job, Run


@click.command()
@click.argument("job_id", callback=full_job_id, metavar="ID")
@output_option
@click.pass_obj
def status(options: OperatorOptions, *, job_id: str, output: Format | None) -> None:
    """Show the job ID and each of its runs.

    The exit code says whether the job could be read, not how it ended. "jsonl" and "name" list the runs alone.
    """
    from shovey_trio.cli.operator.session import load_settings, run_session

    settings = load_settings(options)
    chosen = output or Format(settings.client.output)

    async def work(session: ControllerSession) -> Exit:
        found = await session.job_id(job_id)
        with session.call():
            job = await session.client.get_job(found)
            runs = await session.client.list_runs(found).take()
        _write(job, runs, chosen)
        return Exit.OK

    run_session(settings, work)


def _write(job: Job, runs: Sequence[Run], output: Format) -> None:
    from shovey_trio.cli.text.plain import plain_message

    if output in {Format.JSON, Format.YAML}:
        write_document({"job": plain_message(job), "runs": [plain_message(run) for run in runs]}, output)
        return
    if output is Format.TABLE:
        for title, text in _headlines(job):
            if text:
                click.echo(f"{title:<9} {text}")
        click.echo()
    write_listing(runs, run_shape(), output)


def run_shape() -> Shape[Run]:
    """How runs are listed."""
    from shovey_trio.cli.operator.job_view import explain_run, proof_word, run_elapsed, run_word, size_words

    now = time.time()

    def why(run: Run) -> str:
        late = f"late report: {_late_word(run)}" if run.HasField("late_report") else ""
        return "; ".join(part for part in (*explain_run(run), run.detail, late) if part)

    return Shape(
        columns=(
            Column(title="NODE", of=lambda run: run.node),
            Column(title="STATE", of=run_word),
            Column(title="EXIT", of=lambda run: str(run.exit_code) if run.HasField("exit_code") else ""),
            Column(title="ELAPSED", of=lambda run: run_elapsed(run, now=now)),
            Column(title="OUTPUT", of=lambda run: size_words(run.stdout_bytes + run.stderr_bytes)),
            Column(title="PROOF", of=proof_word),
            Column(title="WHY", of=why),
        ),
        name=lambda run: run.node,
        nothing="no runs",
    )


def _headlines(job: Job) -> list[tuple[str, str]]:
    from shovey_trio.cli.operator.job_view import job_word
    from shovey_trio.cli.text.terminal_text import printable
    from shovey_trio.cli.text.times import age, elapsed, local_time, unix

    now = time.time()
    cancelling = " (cancelling)" if job.cancel_requested and not job.HasField("finished_at") else ""
    took = elapsed(unix(job.finished_at) - unix(job.created_at)) if job.HasField("finished_at") else ""
    return [
        ("job", job.id),
        ("command", printable(job.command)),
        ("state", job_word(job) + cancelling),
        ("why", printable(job.detail or job.cause)),
        ("quorum", job.quorum),
        ("timeout", elapsed(job.run_timeout.seconds + job.run_timeout.nanos / 1e9)),
        ("by", printable(job.created_by)),
        ("created", f"{local_time(job.created_at)} ({age(job.created_at, now=now)})"),
        ("finished", f"{local_time(job.finished_at)} (after {took})" if took else ""),
    ]


def _late_word(run: Run) -> str:
    from shovey_trio.cli.text.plain import enum_word
    from shovey_trio.v1.job_pb2 import RunState

    return enum_word(RunState.DESCRIPTOR, run.late_report.state) or "unspecified"
