"""What Shovey's clients get to see of jobs, runs and nodes: the JSON of its replies, as plain values.

Recorded from goiardi 0.11.10 (``tests/golden/http.jsonl``). Times are RFC 3339 with as many digits as they have, a time
that is not set is Go's zero time, and node states are lists of names by state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from shovey_trio.core.jobs.model import Job, Node, NodeStatus, Run, RunStatus
from shovey_trio.core.jobs.states import JobState, RunState
from shovey_trio.shovey.protocol.names import exit_status, job_name, run_error, run_name
from shovey_trio.shovey.protocol.times import coarse_time, fine_time

_REFUSED: Final = frozenset({RunState.NACKED, RunState.INVALID})


def job_view(job: Job, runs: Sequence[RunStatus]) -> dict[str, Any]:
    """``GET /shovey/jobs/ID``. A job that failed its quorum has no runs there: nothing was sent to anybody."""
    nodes: dict[str, list[str]] = {}
    if job.state is not JobState.QUORUM_FAILED:
        for run in runs:
            nodes.setdefault(run_name(run.state), []).append(run.node)
    return {
        "command": job.command,
        "created_at": fine_time(job.created_at),
        "id": job.id,
        "nodes": {state: sorted(names) for state, names in sorted(nodes.items())},
        "run_timeout": _seconds(job.run_timeout),
        "status": job_name(job.state),
        "updated_at": fine_time(max([job.updated_at, *(run.updated_at for run in runs)])),
    }


def run_view(run: Run) -> dict[str, Any]:
    """``GET /shovey/jobs/ID/NODE`` without ``output`` and ``stderr``."""
    acknowledged = run.accepted_at or run.started_at
    if acknowledged is None and run.state in _REFUSED:
        acknowledged = run.finished_at
    view = {
        "ack_time": fine_time(acknowledged),
        "end_time": fine_time(run.finished_at),
        "error": run_error(run),
        "exit_status": exit_status(run),
        "node_name": run.node,
        "run_id": run.job_id,
        "status": run_name(run.state),
    }
    # Which goiardi does not know: there only where output is missing.
    missing = {"dropped_bytes": run.dropped_bytes, "output_incomplete": run.output_incomplete}
    return view | {name: value for name, value in missing.items() if value}


def node_view(node: Node, *, url: str | None = None) -> dict[str, Any]:
    """A node's present status; ``url`` only where nodes are listed."""
    last = node.last_seen_at if node.last_seen_at is not None else node.presence_since
    view = {
        "node_name": node.name,
        "status": node.presence.value,
        "updated_at": coarse_time(max(last, node.presence_since)),
    }
    return view if url is None else {**view, "url": url}


def status_view(status: NodeStatus) -> dict[str, Any]:
    """One entry of a node's history."""
    return {"node_name": status.node, "status": status.presence.value, "updated_at": coarse_time(status.since)}


def started_view(job: Job, uri: str) -> Mapping[str, Any]:
    """The reply to ``POST /shovey/jobs``; knife takes the last 36 characters of the URI for the id."""
    return {"id": job.id, "uri": uri}


def _seconds(duration: float) -> int | float:
    """Whole seconds as an integer, as clients expect; only a job of ours can have a fraction."""
    return int(duration) if duration == int(duration) else duration
