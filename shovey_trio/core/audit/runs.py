"""What a job's last record says of its runs: numbers, keys, and a digest from which each of them can be proven.

A job of 10,000 nodes is one record. Its runs stand in their own table for as long as job history is kept; the digest
ties them to the chain. It is SHA-256 over one line of JSON for each run, by node name.
"""

from __future__ import annotations

import hashlib
import json
from typing import Final

from shovey_trio.core.audit.records import AuditAction, AuditEntry, AuditOutcome
from shovey_trio.core.jobs.model import Job, Run

RUNS_DOMAIN: Final = b"shovey-trio/audit-runs/1\n"
# Keys that signed orders of one job: more than two only after as many rotations.
_MAX_KEYS: Final = 16
_dumps: Final = json.JSONEncoder(separators=(",", ":")).encode


class RunsDigest:
    """Takes a job's ended runs, sorted by node; some 5 µs each."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256(RUNS_DOMAIN)
        # Plain dictionaries and not counters: this is a large part of what a job of one node costs.
        self._runs = 0
        self._states: dict[str, int] = {}
        self._causes: dict[str, int] = {}
        self._keys: dict[str, int] = {}
        self._routes: dict[str, int] = {}

    def add(self, run: Run) -> None:
        """Takes the next run. What a node says after the end (``late_report``) is no part of it."""
        self._hash.update(run_line(run))
        self._runs += 1
        self._states[run.state] = self._states.get(run.state, 0) + 1
        if run.cause:
            self._causes[run.cause] = self._causes.get(run.cause, 0) + 1
        if run.key_id:
            self._keys[run.key_id] = self._keys.get(run.key_id, 0) + 1
        if run.route is not None:
            self._routes[run.route] = self._routes.get(run.route, 0) + 1

    @property
    def hexdigest(self) -> str:
        return self._hash.hexdigest()

    def entry(self, job: Job, at: float) -> AuditEntry:
        """The record of the end of a job whose runs were all taken."""
        return AuditEntry(
            at=at,
            organization=job.organization,
            action=AuditAction.JOB_ENDED,
            outcome=AuditOutcome.ENDED,
            principal=job.created_by,
            subject=f"job/{job.id}",
            detail={
                "command": job.command,
                "state": job.state.value,
                "cause": job.cause,
                "runs": self._runs,
                "states": self._states,
                "causes": _most(self._causes),
                "signed_with": _most(self._keys),
                "routes": self._routes,
                "runs_sha256": self.hexdigest,
            },
        )


def _most(counts: dict[str, int]) -> dict[str, int]:
    """The most frequent ones."""
    if len(counts) <= _MAX_KEYS:
        return counts
    return dict(sorted(counts.items(), key=lambda item: -item[1])[:_MAX_KEYS])


def run_line(run: Run) -> bytes:
    """What of a run the digest covers: node, instance, order key and nonce, way, result and times."""
    fields = [
        run.node,
        run.id,
        run.agent_instance or "",
        run.key_id,
        run.nonce.hex(),
        run.route or "",
        run.state,
        run.cause,
        run.exit_code,
        run.signal,
        run.dispatched_at,
        run.started_at,
        run.finished_at,
    ]
    return (_dumps(fields) + "\n").encode("ascii")
