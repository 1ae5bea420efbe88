"""What the audit log says of jobs that are started and cancelled."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from shovey_trio.application.audit import audit_entry
from shovey_trio.core.audit.records import AuditAction, AuditEntry
from shovey_trio.core.jobs.model import Job, Principal, Run
from shovey_trio.core.jobs.states import JobState

# Names that are written out; of more, the digest of all.
_NAMED = 20
# Characters of the values a command is given, before the record holds their digest alone.
_MAX_INPUT = 4_096


def started_entry(job: Job, runs: Sequence[Run], principal: Principal, rule: str) -> AuditEntry:
    """The record of a job that is started: who, by which rule, what, where. One, whatever the number of nodes."""
    detail = {
        "command": job.command,
        **_nodes([run.node for run in runs]),
        "quorum": job.quorum,
        "run_timeout": job.run_timeout,
    }
    if job.input:
        # Values of secrets are in no ``InputRecord``; their names are.
        given = {name: value for name, value in asdict(job.input).items() if value}
        text = repr(sorted(given.items()))
        detail["input"] = given if len(text) <= _MAX_INPUT else {"sha256": hashlib.sha256(text.encode()).hexdigest()}
    if job.state is JobState.QUORUM_FAILED:
        detail["state"] = job.state.value
    kinds = Counter(run.route for run in runs if run.route is not None)
    detail |= {f"{kind}_orders": number for kind, number in kinds.items()}
    return audit_entry(
        job.created_at,
        AuditAction.JOB_STARTED,
        organization=principal.organization,
        principal=principal.label,
        rule=rule,
        subject=f"job/{job.id}",
        detail=detail,
    )


def cancelled_entry(job: Job, nodes: Sequence[str], principal: Principal, rule: str, at: float) -> AuditEntry:
    """The record of a cancel that is asked for, of all runs (``nodes`` empty) or of some."""
    return audit_entry(
        at,
        AuditAction.JOB_CANCELLED,
        organization=principal.organization,
        principal=principal.label,
        rule=rule,
        subject=f"job/{job.id}",
        detail={"command": job.command, **(_nodes(nodes) if nodes else {"nodes": "all"})},
    )


def _nodes(names: Sequence[str]) -> dict[str, object]:
    if len(names) <= _NAMED:
        return {"nodes": list(names)}
    digest = hashlib.sha256("\n".join(names).encode("utf-8", "surrogatepass")).hexdigest()
    return {"nodes": len(names), "first_nodes": list(names[:3]), "nodes_sha256": digest}
