"""Our states as Shovey's clients know them: the one mapping.

Shovey's clients decide by these words. ``knife goiardi job start`` polls while a job is ``new``, ``voting`` or
``running`` and takes any other word for the end, so a job that is not over is never called anything else; and its exit
code counts every run that is not ``succeeded`` or ``nacked`` as a failure.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from shovey_trio.core.jobs.model import Run
from shovey_trio.core.jobs.states import JobState, RunState

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


def run_name(state: RunState) -> str:
    """Shovey's word for a run's state."""
    return RUN_NAMES[state]


def job_name(state: JobState) -> str:
    """Shovey's word for a job's state."""
    return JOB_NAMES[state]


def run_error(run: Run) -> str:
    """The text of a run's ``error``: why it did not succeed; empty for a run that did, or is not over.

    Where Shovey's word is vaguer than ours, ours stands in front.
    """
    if not run.is_terminal or run.state is RunState.SUCCEEDED:
        return ""
    if run.state is RunState.FAILED:
        return run.detail or (f"signal: {run.signal}" if run.signal is not None else f"exit status {run.exit_code}")
    word = "" if run.state.value == run_name(run.state) else run.state.value.replace("_", " ")
    return ": ".join(part for part in (word, run.detail or run.cause.replace("_", " ")) if part)


def exit_status(run: Run) -> int:
    """The run's ``exit_status``, which is a number in Shovey: 255 for a run ended by a signal, 0 when there is none."""
    if run.exit_code is not None:
        return run.exit_code
    return 255 if run.signal is not None else 0
