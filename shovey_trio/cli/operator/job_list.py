"""``shovey job list``: jobs, newest first."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from shovey_trio.cli.operator.options import OperatorOptions
from shovey_trio.cli.text.output_formats import Column, Format, Shape, output_option, write_listing
from shovey_trio.core.errors import Exit
from shovey_trio.core.jobs.states import JobState

if TYPE_CHECKING:
    from shovey_trio.cli.operator.session import ControllerSession
    from shovey_trio.v1.job_pb2 import Job


@click.command("list")
@click.option(
    "--state", "states", multiple=True, type=click.Choice([state.value for state in JobState]), help="Only this state."
)
@click.option("--command", default="", metavar="NAME", help="Only jobs of this command.")
@click.option(
    "--by",
    "created_by",
    default="",
    callback=lambda _ctx, _param, who: f"user/{who}" if who and "/" not in who else who,
    metavar="WHO",
    help="Only jobs started by this user.",
)
@click.option("--limit", type=click.IntRange(min=0), default=50, show_default=True, help="At most so many; 0 for all.")
@output_option
@click.pass_obj
def list_jobs(
    options: OperatorOptions,
    *,
    states: tuple[str, ...],
    command: str,
    created_by: str,
    limit: int,
    output: Format | None,
) -> None:
    """List jobs, newest first."""
    from shovey_trio.cli.operator.session import load_settings, run_session
    from shovey_trio.rpc.convert import JOB_STATES

    settings = load_settings(options)
    wanted = [JOB_STATES.number(JobState(state)) for state in states]

    async def work(session: ControllerSession) -> Exit:
        with session.call():
            jobs = session.client.list_jobs(
                states=wanted, command=command, created_by=created_by, page_size=min(limit or 1000, 1000)
            )
            found = await jobs.take(limit or None)
        write_listing(found, _shape(), output or Format(settings.client.output))
        return Exit.OK

    run_session(settings, work)


def _shape() -> Shape[Job]:
    from shovey_trio.cli.operator.job_view import job_word
    from shovey_trio.cli.text.times import age, local_time

    now = time.time()
    return Shape(
        columns=(
            Column(title="ID", of=lambda job: job.id),
            Column(title="COMMAND", of=lambda job: job.command),
            Column(title="STATE", of=job_word),
            Column(title="RUNS", of=_runs),
            Column(title="BY", of=lambda job: job.created_by),
            Column(title="CREATED", of=lambda job: local_time(job.created_at)),
            Column(title="AGE", of=lambda job: age(job.created_at, now=now)),
        ),
        name=lambda job: job.id,
        nothing="no jobs",
    )


def _runs(job: Job) -> str:
    """How many of the runs succeeded: ``2/3``."""
    from shovey_trio.v1.job_pb2 import RUN_STATE_SUCCEEDED

    succeeded = sum(count.count for count in job.run_counts if count.state == RUN_STATE_SUCCEEDED)
    return f"{succeeded}/{job.run_total}"
