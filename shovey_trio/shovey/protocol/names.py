"""Our states as Shovey's clients know them: the one mapping.

Shovey's clients decide by these words. ``knife goiardi job start`` polls while a job is ``new``, ``voting`` or
``running`` and takes any other word for the end, so a job that is not over is never called anything else; and its exit
code counts every run that is not ``succeeded`` or ``nacked`` as a failure.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from shovey_trio.core.jobs.model import Run, ToldEnd
from shovey_trio.core.jobs.states import JobState, RunState
from shovey_trio.shovey.protocol.times import coarse_time

RUN_NAMES: Final[Mapping[RunState, str]] = MappingProxyType(
    {
        RunState.HELD: "created",
        RunState.PENDING: "created",
        RunState.DISPATCHED: "created",
        RunState.ACCEPTED: "running",
        RunState.RUNNING: "running",
        # Not over: it heals when the node is heard, or becomes crashed.
        RunState.UNKNOWN: "running",
        RunState.SUCCEEDED: "succeeded",
        RunState.FAILED: "failed",
        # The words below have no counterpart; ``run_error`` says which it was.
        RunState.TIMED_OUT: "failed",
        RunState.CRASHED: "failed",
        RunState.CANCELLED: "cancelled",
        RunState.CANCEL_UNPROVEN: "cancelled",
        RunState.NACKED: "nacked",
        RunState.INVALID: "invalid",
        RunState.UNAVAILABLE: "down",
        RunState.SKIPPED: "cancelled",
    }
)

JOB_NAMES: Final[Mapping[JobState, str]] = MappingProxyType(
    {
        JobState.NEW: "running",
        JobState.RUNNING: "running",
        JobState.COMPLETE: "complete",
        JobState.QUORUM_FAILED: "quorum_failed",
        JobState.CANCELLED: "cancelled",
        JobState.TIMED_OUT: "complete",
        JobState.CRASHED: "complete",
    }
)

_WORDS: Final = {RunState.CANCEL_UNPROVEN: "cancel unproven, the command may still run"}


def run_name(state: RunState) -> str:
    """Shovey's word for a run's state."""
    return RUN_NAMES[state]


def job_name(state: JobState) -> str:
    """Shovey's word for a job's state."""
    return JOB_NAMES[state]


def run_error(run: Run) -> str:
    """The text of a run's ``error``: why it did not succeed, or that nobody hears of it; else empty.

    Where Shovey's word is vaguer than ours, ours stands in front; what the node said after the end stands behind.
    """
    if run.state is RunState.UNKNOWN:
        since = run.dispatched_at if run.accepted_at is None else run.unknown_since
        return f"no word from the node since {coarse_time(since or run.updated_at)}"
    late = run.late_report
    said_later = "" if late is None else f"the node said after that: {_end_word(late)}"
    return "; ".join(part for part in (_why_not_succeeded(run), said_later) if part)


def _why_not_succeeded(run: Run) -> str:
    if not run.is_terminal or run.state is RunState.SUCCEEDED:
        return ""
    if run.state is RunState.FAILED:
        return run.detail or _code(run)
    word = _WORDS.get(run.state, run.state.value.replace("_", " "))
    why = run.detail or run.cause.replace("_", " ")
    return ": ".join(part for part in (word, why) if part and part != run_name(run.state))


def _end_word(end: ToldEnd) -> str:
    word = end.state.value.replace("_", " ")
    return f"{word}, {_code(end)}" if end.state is RunState.FAILED else word


def _code(end: Run | ToldEnd) -> str:
    return f"signal: {end.signal}" if end.signal is not None else f"exit status {end.exit_code}"


def exit_status(run: Run) -> int:
    """The run's ``exit_status``, which is a number in Shovey: 255 for a run ended by a signal, 0 when there is none."""
    if run.exit_code is not None:
        return run.exit_code
    return 255 if run.signal is not None else 0
