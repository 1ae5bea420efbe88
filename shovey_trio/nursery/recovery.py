"""Taking up the jobs of the last start: a nursery for each job that the store says is not finished.

Deadlines keep their absolute time, because they are derived from stored times. A run that was only ``pending`` may
have been sent its order just before the stop (``dispatched`` is not durable), so it counts as sent. A job whose cancel
is durable is cancelled for all of its runs, however many of them had heard of it.
"""

from __future__ import annotations

from dataclasses import replace

import structlog

from shovey_trio.core.jobs.command_input import restore_input
from shovey_trio.core.jobs.events import CancelAsked
from shovey_trio.core.jobs.model import Route, Run
from shovey_trio.core.jobs.states import RunState
from shovey_trio.nursery.supervisor import Supervisor
from shovey_trio.store.contract import Store

_log = structlog.get_logger(__name__)
# Who asks the runs that a cancel of their job had not reached before the stop.
_BY_JOB = "job"


async def take_up_jobs(store: Store, supervisor: Supervisor) -> int:
    """Opens a nursery per unfinished job and returns how many there were."""
    pictures = await store.unfinished_jobs()
    for picture in pictures:
        expires_at = supervisor.services.timing.acceptance_until(picture.job)
        runs = [_maybe_sent(run, expires_at) for run in picture.runs]
        extents = await store.output_extents([run.id for run in runs if not run.is_terminal])
        handle = supervisor.admit(picture.job, runs, extents, given=restore_input(picture.job.input, picture.stdin))
        if picture.job.cancel_requested:
            for live in handle.runs.values():
                if not live.is_closed and not live.run.cancelling:
                    live.post_first(CancelAsked(by=_BY_JOB))
    if pictures:
        _log.info("jobs.taken_up", jobs=len(pictures))
    return len(pictures)


def _maybe_sent(run: Run, expires_at: float) -> Run:
    # An order in a query is noted durably before it goes out, and must never go out twice.
    if run.state is RunState.PENDING and run.attempts == 0 and run.route is not Route.LEGACY:
        return replace(run, attempts=1, order_expires_at=expires_at)
    return run
