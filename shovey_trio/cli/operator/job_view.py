"""What is known of a job that is being watched: pure bookkeeping over the events of ``WatchJob``."""

from __future__ import annotations

from collections import Counter
from typing import Final

from shovey_trio.cli.text.plain import enum_word
from shovey_trio.cli.text.times import elapsed, unix
from shovey_trio.core.errors import Exit
from shovey_trio.core.jobs.states import TERMINAL_JOB_STATES, TERMINAL_RUN_STATES, JobState, RunState
from shovey_trio.v1 import job_pb2
from shovey_trio.v1.job_service_pb2 import WatchJobResponse

_TERMINAL_RUNS: Final = frozenset(state.value for state in TERMINAL_RUN_STATES)
_TERMINAL_JOBS: Final = frozenset(state.value for state in TERMINAL_JOB_STATES)
# Ends of a run of which nobody can say that the command is gone.
_UNPROVEN_ENDS: Final = frozenset({RunState.CANCEL_UNPROVEN.value, RunState.CRASHED.value})


def run_word(run: job_pb2.Run) -> str:
    """A run's state as a word."""
    return enum_word(job_pb2.RunState.DESCRIPTOR, run.state) or "unspecified"


def job_word(job: job_pb2.Job) -> str:
    """A job's state as a word."""
    return enum_word(job_pb2.JobState.DESCRIPTOR, job.state) or "unspecified"


def proof_word(run: job_pb2.Run) -> str:
    """The kind of proof as a word; empty without one."""
    return enum_word(job_pb2.ProofKind.DESCRIPTOR, run.proof) or ""


def run_ended(run: job_pb2.Run) -> bool:
    """Whether the run is terminal."""
    return run_word(run) in _TERMINAL_RUNS


def run_proven_gone(run: job_pb2.Run) -> bool:
    """Whether the run has ended and its command is certain to run no more."""
    return run_ended(run) and run_word(run) not in _UNPROVEN_ENDS


def explain_run(run: job_pb2.Run) -> list[str]:
    """Why the run is in its state, in words that say more than the state itself: ``exit 3``, ``not_whitelisted``."""
    notes = []
    if run.HasField("signal"):
        notes.append(f"signal {run.signal}")
    elif run.HasField("exit_code") and run.exit_code != 0:
        notes.append(f"exit {run.exit_code}")
    elif run.cause not in {"", "exited", "cancelled", run_word(run)}:
        notes.append(run.cause)
    if run_word(run) == RunState.CANCEL_UNPROVEN.value and not run.HasField("late_report"):
        notes.append("the command may still run")
    if run.cancelling and not run_ended(run):
        notes.append("cancelling")
    if run.dropped_bytes:
        notes.append(f"{size_words(run.dropped_bytes)} of output missing")
    if run.output_incomplete:
        notes.append("output incomplete")
    return notes


def output_missing(run: job_pb2.Run) -> bool:
    """Whether output of the run is missing, or may be."""
    return run.dropped_bytes > 0 or run.output_incomplete


def describe_run(run: job_pb2.Run) -> str:
    """State and why, in a few words: ``failed (exit 3)``, ``cancelled (proof: empty_subreaper)``."""
    notes = explain_run(run)
    if run_word(run) == RunState.CANCELLED.value and proof_word(run):
        notes.append(f"proof: {proof_word(run)}")
    return run_word(run) + (f" ({', '.join(notes)})" if notes else "")


def size_words(size: int) -> str:
    """A number of bytes for a person."""
    if size < 1024:
        return f"{size} B"
    return f"{size / 1024:.1f} KiB" if size < 1024**2 else f"{size / 1024**2:.1f} MiB"


def run_elapsed(run: job_pb2.Run, *, now: float) -> str:
    """How long the command has run or ran; empty before its start."""
    if not run.HasField("started_at"):
        return ""
    end = unix(run.finished_at) if run.HasField("finished_at") else now
    return elapsed(end - unix(run.started_at))


class JobView:
    """A job and its runs, kept up to date by ``apply``."""

    def __init__(self) -> None:
        self.job = job_pb2.Job()
        self.runs: dict[str, job_pb2.Run] = {}

    def apply(self, event: WatchJobResponse) -> list[job_pb2.Run]:
        """Take note of an event; return the runs whose state or description it changed."""
        match event.WhichOneof("event"):
            case "snapshot":
                self.job = event.snapshot.job
                return [run for run in event.snapshot.runs if self._take(run)]
            case "job_changed":
                self.job = event.job_changed.job
            case "run_changed" if self._take(event.run_changed.run):
                return [event.run_changed.run]
        return []

    @property
    def ended(self) -> bool:
        """Whether the job is terminal."""
        return job_word(self.job) in _TERMINAL_JOBS

    def counts(self) -> Counter[str]:
        """How many runs are in which state."""
        return Counter(run_word(run) for run in self.runs.values())

    def summary(self) -> str:
        """The job in one line: ``complete: 2 succeeded, 1 failed``."""
        counts = self.counts()
        parts = ", ".join(f"{counts[state.value]} {state.value}" for state in RunState if counts[state.value])
        why = self.job.detail or self.job.cause
        state = job_word(self.job) + (f" ({why})" if why and self.ended and job_word(self.job) != "complete" else "")
        return f"{state}: {parts}" if parts else state

    def exit(self, *, fail_on_truncation: bool = False) -> Exit:
        """The exit code that a terminal job stands for."""
        if job_word(self.job) == JobState.QUORUM_FAILED.value:
            return Exit.QUORUM
        every_run_succeeded = all(run_word(run) == RunState.SUCCEEDED.value for run in self.runs.values())
        if job_word(self.job) != JobState.COMPLETE.value or not every_run_succeeded:
            return Exit.RUNS_FAILED
        cut = fail_on_truncation and any(output_missing(run) for run in self.runs.values())
        return Exit.TRUNCATED if cut else Exit.OK

    def _take(self, run: job_pb2.Run) -> bool:
        known = self.runs.get(run.node)
        self.runs[run.node] = run
        return known is None or describe_run(known) != describe_run(run)
