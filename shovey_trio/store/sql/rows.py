"""Values to rows and back.

A job or run has columns that never change and columns that every write sets. The changing ones are written twice:
whole into its row, and into the event of that write as JSON of those that differ from ``*_DEFAULTS``, so that the
events of 10,000 fresh runs cost 30 bytes each.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Any, Final

from shovey_trio.core.jobs.command_input import NO_RECORD, InputRecord
from shovey_trio.core.jobs.model import (
    Job,
    LateReport,
    LinkMode,
    Node,
    NodeStatus,
    OutputChunk,
    Presence,
    ProofKind,
    Role,
    Route,
    Run,
    RunStatus,
    StreamName,
    User,
)
from shovey_trio.core.jobs.states import JobState, RunState

Row = Sequence[Any]
Values = dict[str, Any]

JOB_FIXED: Final = (
    "job_id",
    "organization",
    "command",
    "quorum",
    "run_timeout",
    "kill_grace",
    "created_by",
    "created_at",
    "input",
)
JOB_DEFAULTS: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "updated_at": None,
        "state": JobState.NEW.value,
        "cause": "",
        "detail": "",
        "finished_at": None,
        "cancel_requested": 0,
        "run_total": 0,
        "run_counts": "{}",
    }
)
# ``job_id`` and ``organization`` of a run are those of its job's row.
RUN_FIXED: Final = ("run_id", "job_id", "organization", "node", "created_at", "nonce")
RUN_DEFAULTS: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "updated_at": None,
        "agent_instance": None,
        "state": RunState.PENDING.value,
        "cause": "",
        "detail": "",
        "exit_code": None,
        "signal": None,
        "dispatched_at": None,
        "accepted_at": None,
        "started_at": None,
        "finished_at": None,
        "unknown_since": None,
        "cancelling": 0,
        "cancel_reason": "",
        "proof": None,
        "route": None,
        "attempts": 0,
        "order_expires_at": None,
        "dropped_bytes": 0,
        "late_report": None,
        "key_id": "",
    }
)


class UndecodableRow(Exception):
    """A row holds what was never written: the file is damaged in a way that SQLite cannot see."""


def job_fixed(job: Job) -> Values:
    return {
        "job_id": job.id,
        "organization": job.organization,
        "command": job.command,
        "quorum": job.quorum,
        "run_timeout": job.run_timeout,
        "kill_grace": job.kill_grace,
        "created_by": job.created_by,
        "created_at": job.created_at,
        "input": _dump(asdict(job.input)) if job.input else None,
    }


def job_changes(job: Job) -> Values:
    return {
        "updated_at": job.updated_at,
        "state": job.state.value,
        "cause": job.cause,
        "detail": job.detail,
        "finished_at": job.finished_at,
        "cancel_requested": int(job.cancel_requested),
        "run_total": job.run_total,
        "run_counts": _dump(dict(job.run_counts)),
    }


def decode_job(row: Row) -> Job:
    """A job from the columns ``JOB_FIXED`` and ``JOB_DEFAULTS``, in that order."""
    try:
        return Job(
            id=row[0],
            organization=row[1],
            command=row[2],
            quorum=row[3],
            run_timeout=row[4],
            kill_grace=row[5],
            created_by=row[6],
            created_at=row[7],
            input=_decode_input(row[8]),
            updated_at=row[9],
            state=JobState(row[10]),
            cause=row[11],
            detail=row[12],
            finished_at=row[13],
            cancel_requested=bool(row[14]),
            run_total=row[15],
            run_counts={RunState(state): count for state, count in json.loads(row[16]).items()},
        )
    except (ValueError, TypeError, KeyError) as error:
        raise UndecodableRow(f"job {row[0]!r}: {error}") from error


def _decode_input(text: str | None) -> InputRecord:
    if text is None:
        return NO_RECORD
    fields = json.loads(text)
    return InputRecord(**{**fields, "secret_env": tuple(fields["secret_env"])})


def run_fixed(run: Run, job_pk: int) -> Values:
    return {"run_id": run.id, "job_pk": job_pk, "node": run.node, "created_at": run.created_at, "nonce": run.nonce}


def run_changes(run: Run) -> Values:
    return {
        "updated_at": run.updated_at,
        "agent_instance": run.agent_instance,
        "state": run.state.value,
        "cause": run.cause,
        "detail": run.detail,
        "exit_code": run.exit_code,
        "signal": run.signal,
        "dispatched_at": run.dispatched_at,
        "accepted_at": run.accepted_at,
        "started_at": run.started_at,
        "finished_at": run.finished_at,
        "unknown_since": run.unknown_since,
        "cancelling": int(run.cancelling),
        "cancel_reason": run.cancel_reason,
        "proof": run.proof.value if run.proof else None,
        "route": run.route.value if run.route else None,
        "attempts": run.attempts,
        "order_expires_at": run.order_expires_at,
        "dropped_bytes": run.dropped_bytes,
        "late_report": _dump_late_report(run.late_report) if run.late_report else None,
        "key_id": run.key_id,
    }


def decode_run(row: Row) -> Run:
    """A run from the columns ``RUN_FIXED`` and ``RUN_DEFAULTS``, in that order."""
    try:
        return Run(
            id=row[0],
            job_id=row[1],
            organization=row[2],
            node=row[3],
            created_at=row[4],
            nonce=row[5],
            updated_at=row[6],
            agent_instance=row[7],
            state=RunState(row[8]),
            cause=row[9],
            detail=row[10],
            exit_code=row[11],
            signal=row[12],
            dispatched_at=row[13],
            accepted_at=row[14],
            started_at=row[15],
            finished_at=row[16],
            unknown_since=row[17],
            cancelling=bool(row[18]),
            cancel_reason=row[19],
            proof=ProofKind(row[20]) if row[20] else None,
            route=Route(row[21]) if row[21] else None,
            attempts=row[22],
            order_expires_at=row[23],
            dropped_bytes=row[24],
            late_report=_load_late_report(row[25]) if row[25] else None,
            key_id=row[26],
        )
    except (ValueError, KeyError) as error:
        raise UndecodableRow(f"run {row[0]!r}: {error}") from error


def decode_run_status(row: Row) -> RunStatus:
    """How far a run is, from node, state, updated_at."""
    try:
        return RunStatus(node=row[0], state=RunState(row[1]), updated_at=row[2])
    except ValueError as error:
        raise UndecodableRow(f"run of {row[0]!r}: {error}") from error


def event_body(changes: Values, defaults: Mapping[str, Any]) -> str:
    """The JSON of an event: what of ``changes`` differs from ``defaults``."""
    return _dump({name: value for name, value in changes.items() if value != defaults[name]})


def event_changes(body: str, defaults: Mapping[str, Any]) -> list[Any]:
    """The changing columns that ``event_body`` was made from, in their order."""
    try:
        changes = json.loads(body)
    except ValueError as error:
        raise UndecodableRow(f"event: {error}") from error
    return [changes.get(name, default) for name, default in defaults.items()]


def chunk_values(chunk: OutputChunk) -> Values:
    return {
        "position": chunk.position,
        "stream": chunk.stream.value,
        "stream_offset": chunk.stream_offset,
        "read_at": chunk.read_at,
        "data": chunk.data,
    }


def decode_chunk(row: Row) -> OutputChunk:
    """A chunk from position, stream, stream_offset, read_at, data."""
    try:
        return OutputChunk(
            position=row[0], stream=StreamName(row[1]), stream_offset=row[2], read_at=row[3], data=row[4]
        )
    except ValueError as error:
        raise UndecodableRow(f"output: {error}") from error


def node_values(node: Node) -> Values:
    return {
        "agent_instance": node.agent_instance,
        "agent_version": node.agent_version,
        "link": node.link.value,
        "tags": _dump(dict(node.tags)),
        "enrolled_at": node.enrolled_at,
        "last_seen_at": node.last_seen_at,
        "presence": node.presence.value,
        "presence_since": node.presence_since,
        "presence_reason": node.presence_reason,
        "clock_skew": node.clock_skew,
    }


def decode_node(row: Row) -> Node:
    """A node from the columns of ``tables.nodes``."""
    try:
        return Node(
            organization=row[0],
            name=row[1],
            agent_instance=row[2],
            agent_version=row[3],
            link=LinkMode(row[4]),
            tags=MappingProxyType(json.loads(row[5])),
            enrolled_at=row[6],
            last_seen_at=row[7],
            presence=Presence(row[8]),
            presence_since=row[9],
            presence_reason=row[10],
            clock_skew=row[11],
        )
    except ValueError as error:
        raise UndecodableRow(f"node {row[1]!r}: {error}") from error


def status_values(status: NodeStatus) -> Values:
    return {
        "organization": status.organization,
        "node": status.node,
        "presence": status.presence.value,
        "since": status.since,
        "reason": status.reason,
    }


def decode_status(row: Row) -> NodeStatus:
    """A presence entry from organization, node, presence, since, reason."""
    try:
        return NodeStatus(organization=row[0], node=row[1], presence=Presence(row[2]), since=row[3], reason=row[4])
    except ValueError as error:
        raise UndecodableRow(f"presence of {row[1]!r}: {error}") from error


def decode_user(row: Row) -> User:
    """A user from the columns of ``tables.users``."""
    try:
        return User(organization=row[0], name=row[1], role=Role(row[2]), created_at=row[3])
    except ValueError as error:
        raise UndecodableRow(f"user {row[1]!r}: {error}") from error


# Made once: ``json.dumps`` with options makes an encoder for every call, which costs more than encoding an event.
_dump: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def _dump_late_report(report: LateReport) -> str:
    return _dump(
        {
            "state": report.state,
            "cause": report.cause,
            "exit_code": report.exit_code,
            "signal": report.signal,
            "reported_at": report.reported_at,
        }
    )


def _load_late_report(text: str) -> LateReport:
    fields = json.loads(text)
    return LateReport(**{**fields, "state": RunState(fields["state"])})
