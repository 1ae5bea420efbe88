"""Taking up the jobs of the last start: a nursery for each job that the store says is not finished.

Deadlines keep their absolute time, because they are derived from stored times. A run that was only ``pending`` may
have been sent its order just before the stop (``dispatched`` is not durable), so it counts as sent.
"""

from __future__ import annotations

from dataclasses import replace

import structlog

from shovey_trio.core.model import Run
from shovey_trio.core.states import RunState
from shovey_trio.nursery.ports import Store
from shovey_trio.nursery.supervisor import Supervisor

_log = structlog.get_logger(__name__)


async def take_up_jobs(store: Store, supervisor: Supervisor) -> int:
    """Opens a nursery per unfinished job and returns how many there were."""
    pictures = await store.unfinished_jobs()
    for picture in pictures:
        runs = [_maybe_sent(run) for run in picture.runs]
        extents = await store.output_extents([run.id for run in runs if not run.is_terminal])
        supervisor.admit(picture.job, runs, extents)
    if pictures:
        _log.info("jobs.taken_up", jobs=len(pictures))
    return len(pictures)


def _maybe_sent(run: Run) -> Run:
    return replace(run, attempts=1) if run.state is RunState.PENDING and run.attempts == 0 else run
