"""Taking up the jobs of the last start: a nursery for each job that the store says is not finished.

Deadlines keep their absolute time, because they are derived from stored times. A held run was never sent. A run that
was only ``pending`` may
have been sent its order just before the stop (``dispatched`` is not durable), so it counts as sent. A job whose cancel
is durable is cancelled for all of its runs, however many of them had heard of it.
"""

from __future__ import annotations

from dataclasses import replace

import structlog

from shovey_trio.core.jobs.command_input import restore_input
from shovey_trio.core.jobs.events import CancelAsked
from shovey_trio.core.jobs.model import Job, Run
from shovey_trio.core.jobs.states import RunState
from shovey_trio.nursery.route import NodeRoute
from shovey_trio.nursery.supervisor import Supervisor
from shovey_trio.store.contract import LiveJobs

_log = structlog.get_logger(__name__)
# Who asks the runs that a cancel of their job had not reached before the stop.
_BY_JOB = "job"


async def take_up_jobs(store: LiveJobs, supervisor: Supervisor) -> int:
    """Opens a nursery per unfinished job and returns how many there were."""
    routes = supervisor.services.routes
    # Before anything is sent: from here on nodes refuse what an earlier start of the controller still has to say.
    await store.raise_epochs(supervisor.services.epoch)
    pictures = await store.unfinished_jobs()
    for picture in pictures:
        runs = [_maybe_sent(run, picture.job, routes.of_run(run)) for run in picture.runs]
        extents = await store.output_extents([run.id for run in runs if not run.is_terminal])
        handle = supervisor.admit(picture.job, runs, extents, given=restore_input(picture.job.input, picture.stdin))
        if picture.job.cancel_requested:
            for live in handle.runs.values():
                if not live.is_closed and not live.run.cancelling:
                    live.post_nowait(CancelAsked(by=_BY_JOB))
    if pictures:
        _log.info("jobs.taken_up", jobs=len(pictures))
    return len(pictures)


def _maybe_sent(run: Run, job: Job, route: NodeRoute) -> Run:
    # An order that must not go out twice is noted durably before it does: then what is pending was not sent.
    if run.state is RunState.PENDING and run.attempts == 0 and route.may_repeat:
        return replace(run, attempts=1, order_expires_at=route.acceptance_until(job, run))
    return run
