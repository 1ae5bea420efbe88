"""Decisions about a whole job: may it start, and how did it end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from shovey_trio.core.jobs.model import Job
from shovey_trio.core.jobs.quorum import required_nodes
from shovey_trio.core.jobs.states import JobState, RunState, check_job_transition

_CANCELLED = (RunState.CANCELLED, RunState.CANCEL_UNPROVEN)


def admit(job: Job, up: int, now: float) -> Job:
    """The job after its quorum was checked: ``running``, or ``quorum_failed`` with both figures in its detail.

    Args:
        job: a new job.
        up: how many of its nodes are up.
        now: unix seconds.
    """
    required = required_nodes(job.quorum, job.run_total)
    if up >= required:
        return _to(job, JobState.RUNNING, now)
    detail = f"{up} of {job.run_total} nodes are up, {required} needed"
    return replace(_to(job, JobState.QUORUM_FAILED, now), cause="quorum_not_met", detail=detail, finished_at=now)


def request_cancel(job: Job, now: float) -> Job:
    """The job after a cancel of all its runs was asked for."""
    if job.is_terminal or job.cancel_requested:
        return job
    return replace(job, cancel_requested=True, updated_at=now)


def complete(job: Job, counts: Mapping[RunState, int], now: float) -> Job:
    """The job after its last run ended.

    ``cancelled`` when the whole job was cancelled and a run was ended by it; ``timed_out`` when a run ran out of
    time; ``complete`` otherwise, whatever the results.
    """
    if job.cancel_requested and any(counts.get(state) for state in _CANCELLED):
        state, cause = JobState.CANCELLED, "cancelled"
    elif counts.get(RunState.TIMED_OUT):
        state, cause = JobState.TIMED_OUT, "run_timeout"
    else:
        state, cause = JobState.COMPLETE, ""
    return replace(_to(job, state, now), cause=cause, finished_at=now, run_counts=dict(counts))


def crash(job: Job, detail: str, counts: Mapping[RunState, int], now: float) -> Job:
    """The job after its own task failed."""
    ended = _to(job, JobState.CRASHED, now)
    return replace(ended, cause="internal_error", detail=detail, finished_at=now, run_counts=dict(counts))


def _to(job: Job, state: JobState, now: float) -> Job:
    check_job_transition(job.state, state)
    return replace(job, state=state, updated_at=now)
