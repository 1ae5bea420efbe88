"""States of jobs and runs: the one table that everything else is derived from.

The rules of this file:

* A run has one state at a time and moves only along ``RUN_TRANSITIONS``. A pair that is not in the table is an
  ``IllegalTransition``: a bug of ours if it came from our own code, and never reachable by what a peer sends (the
  machine in ``run_machine`` turns a peer's nonsense into a late report or ignores it).
* A run is ``held`` until its job releases it; all its times count from then. A held run was never sent: nothing that
  is heard, or not heard, of its node moves it. What will not be released ends ``skipped``, with the cause.
* A terminal state has no way out. What a node says later is kept beside it as a late report.
* ``unknown`` is not terminal. It says that the controller cannot know; it is left by the truth (any state that a
  live run could have reached meanwhile) or by ``crashed`` once the reconnect grace is over.
* ``cancelled`` is entered only with a proof that the process tree is gone; a route that cannot prove it ends in
  ``cancel_unproven``. Until then a run carries a ``cancelling`` flag beside its state.

Names that old clients see are a mapping of these, made in one place per protocol.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from shovey_trio.core.errors import IllegalTransition


class RunState(StrEnum):
    """What is known of one node's part of a job."""

    HELD = "held"
    PENDING = "pending"
    DISPATCHED = "dispatched"
    ACCEPTED = "accepted"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    CANCEL_UNPROVEN = "cancel_unproven"
    NACKED = "nacked"
    INVALID = "invalid"
    UNAVAILABLE = "unavailable"
    SKIPPED = "skipped"
    CRASHED = "crashed"
    UNKNOWN = "unknown"


class JobState(StrEnum):
    """What is known of a whole job."""

    NEW = "new"
    RUNNING = "running"
    COMPLETE = "complete"
    QUORUM_FAILED = "quorum_failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    CRASHED = "crashed"


_R = RunState
_ENDED_ON_NODE = frozenset({_R.SUCCEEDED, _R.FAILED, _R.TIMED_OUT, _R.CANCELLED, _R.CANCEL_UNPROVEN, _R.CRASHED})
_REFUSED = frozenset({_R.NACKED, _R.INVALID})

RUN_TRANSITIONS: Final[dict[RunState, frozenset[RunState]]] = {
    _R.HELD: frozenset({_R.PENDING, _R.SKIPPED, _R.CANCELLED, _R.UNAVAILABLE, _R.CRASHED}),
    # A pending run can be answered before its `dispatched` is written: the order is fast, that state is not durable.
    _R.PENDING: frozenset({_R.DISPATCHED, _R.ACCEPTED, _R.RUNNING, _R.UNAVAILABLE, _R.UNKNOWN})
    | _REFUSED
    | _ENDED_ON_NODE,
    _R.DISPATCHED: frozenset({_R.ACCEPTED, _R.RUNNING, _R.UNAVAILABLE, _R.UNKNOWN}) | _REFUSED | _ENDED_ON_NODE,
    _R.ACCEPTED: frozenset({_R.RUNNING, _R.UNKNOWN}) | _ENDED_ON_NODE,
    _R.RUNNING: frozenset({_R.UNKNOWN}) | _ENDED_ON_NODE,
    _R.UNKNOWN: frozenset({_R.DISPATCHED, _R.ACCEPTED, _R.RUNNING, _R.UNAVAILABLE}) | _REFUSED | _ENDED_ON_NODE,
    _R.SUCCEEDED: frozenset(),
    _R.FAILED: frozenset(),
    _R.TIMED_OUT: frozenset(),
    _R.CANCELLED: frozenset(),
    _R.CANCEL_UNPROVEN: frozenset(),
    _R.NACKED: frozenset(),
    _R.INVALID: frozenset(),
    _R.UNAVAILABLE: frozenset(),
    _R.SKIPPED: frozenset(),
    _R.CRASHED: frozenset(),
}

_J = JobState
JOB_TRANSITIONS: Final[dict[JobState, frozenset[JobState]]] = {
    _J.NEW: frozenset({_J.RUNNING, _J.QUORUM_FAILED, _J.CANCELLED, _J.CRASHED}),
    _J.RUNNING: frozenset({_J.COMPLETE, _J.CANCELLED, _J.TIMED_OUT, _J.CRASHED}),
    _J.COMPLETE: frozenset(),
    _J.QUORUM_FAILED: frozenset(),
    _J.CANCELLED: frozenset(),
    _J.TIMED_OUT: frozenset(),
    _J.CRASHED: frozenset(),
}

TERMINAL_RUN_STATES: Final = frozenset(state for state, after in RUN_TRANSITIONS.items() if not after)
TERMINAL_JOB_STATES: Final = frozenset(state for state, after in JOB_TRANSITIONS.items() if not after)
# The order went out, or is to go out, and the node has not answered it.
UNANSWERED_RUN_STATES: Final = frozenset({_R.PENDING, _R.DISPATCHED})
# The node has the order for certain and has not said how it ended.
ACTIVE_RUN_STATES: Final = frozenset({_R.ACCEPTED, _R.RUNNING})


def check_run_transition(before: RunState, after: RunState) -> None:
    """Raises ``IllegalTransition`` unless a run may go from ``before`` to ``after``."""
    if after not in RUN_TRANSITIONS[before]:
        raise IllegalTransition(subject="run", before=before, after=after)


def check_job_transition(before: JobState, after: JobState) -> None:
    """Raises ``IllegalTransition`` unless a job may go from ``before`` to ``after``."""
    if after not in JOB_TRANSITIONS[before]:
        raise IllegalTransition(subject="job", before=before, after=after)
