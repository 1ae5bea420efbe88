"""Makes the fixture of tests/compat: a store as the code of 4a4340d writes it, and what that code reads of it.

Run once, with that commit's code and today's packages; the result is committed::

    mkdir old && git archive 4a4340d | tar -x -C old
    PYTHONPATH=old .venv/bin/python tests/compat/make_store_4a4340d.py tests/compat/fixtures/4a4340d

``store.sqlite3.xz`` holds jobs in every state: two that have ended, with output and their audit records, and the
unfinished ones of ``_UNFINISHED``, each with one run, named for what is known of it. Every state is reached by that
commit's own run machine. ``expected.json`` is what its readers say.
"""

# mypy and the editor see today's modules; these are those of 4a4340d.
# ruff: noqa: I001
from __future__ import annotations

import dataclasses
import hashlib
import json
import lzma
import sqlite3
import sys
import tempfile
from pathlib import Path
from typing import Any

import trio
from as_json import plain
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from shovey_trio.application.job_audit import started_entry
from shovey_trio.core import events, job_machine, run_machine
from shovey_trio.core.audit_runs import RunsDigest
from shovey_trio.core.chef_principals import ChefPrincipal, ChefPrincipalKind
from shovey_trio.core.command_input import InputRecord
from shovey_trio.core.ids import job_id, run_id
from shovey_trio.core.model import (
    Grant,
    Job,
    LinkMode,
    Node,
    NodeStatus,
    OutputChunk,
    Presence,
    Principal,
    ProofKind,
    Role,
    Route,
    Run,
    StreamName,
    User,
)
from shovey_trio.core.states import RunState
from shovey_trio.nursery.ports import JobFilter, RequestKey
from shovey_trio.store.sql_store import SqlStore
from shovey_trio.store.sqlite import open_store

MADE_AT = 1_790_000_000.0
ORGANIZATION = "default"
ADMIN = Principal(organization=ORGANIZATION, role=Role.ADMIN, name="admin")
INSTANCE = "5f0e2a34-0000-4000-8000-000000000001"
GIVEN = InputRecord(args={"what": "wörld"}, env={"LEVEL": "3"}, stdin_bytes=5)
KEY = "4a4340d000000000"

SENT = events.OrderSent(route=Route.STREAM, agent_instance=INSTANCE, expires_at=MADE_AT + 60, key_id=KEY)
SENT_LEGACY = events.OrderSent(route=Route.LEGACY, agent_instance="", expires_at=MADE_AT + 60, key_id="legacy")
ACCEPTED = events.NodeAccepted(at=MADE_AT + 1)
STARTED = events.NodeStarted(at=MADE_AT + 2)
SILENT = events.NodeSilent(since=MADE_AT + 3, reason="stream_lost")
CANCEL = events.CancelAsked(by="user/admin")
ENDED_LEGACY = events.LegacyEnded(
    state=RunState.FAILED, cause="exited", detail="", exit_code=3, signal=None, at=MADE_AT + 4
)
# Node of an unfinished run, and what has happened to it.
_UNFINISHED: dict[str, tuple[Any, ...]] = {
    "pending": (),
    "dispatched": (SENT,),
    "accepted": (SENT, ACCEPTED),
    "running": (SENT, ACCEPTED, STARTED),
    "unknown": (SENT, ACCEPTED, STARTED, SILENT),
    "cancelling": (SENT, ACCEPTED, STARTED, CANCEL),
    "schob-sent": (SENT_LEGACY,),
    "schob-held": (SENT_LEGACY, ENDED_LEGACY),
}


def _report(outcome: events.ReportOutcome, **more: Any) -> events.NodeReported:
    report = events.RunReport(run_id="", outcome=outcome, started_at=MADE_AT + 2, finished_at=MADE_AT + 5, **more)
    return events.NodeReported(report=report)


_FINISHED: dict[str, tuple[Any, ...]] = {
    "ok": (SENT, ACCEPTED, STARTED, _report(events.ReportOutcome.EXITED, exit_code=0)),
    "failed": (SENT, ACCEPTED, STARTED, _report(events.ReportOutcome.EXITED, exit_code=7, dropped_bytes=12)),
    "signalled": (SENT, ACCEPTED, STARTED, _report(events.ReportOutcome.EXITED, signal=9)),
    "refused": (SENT, events.NodeRefused(kind="start", reason="NOT_WHITELISTED", detail="no such command")),
    "down": (events.NodeUnavailable(cause="node_down"),),
    # It was believed dead, and spoke after all.
    "late": (
        *(SENT, ACCEPTED, STARTED, SILENT, events.ReconnectGraceOver()),
        _report(events.ReportOutcome.EXITED, exit_code=0),
    ),
    "schob": (SENT_LEGACY, ENDED_LEGACY, events.LegacyOutputOver()),
}
_PROVEN = _report(events.ReportOutcome.CANCELLED, proof=ProofKind.EMPTY_CGROUP, signal=15)
_CANCELLED: dict[str, tuple[Any, ...]] = {
    "cancelled": (SENT, ACCEPTED, STARTED, CANCEL, _PROVEN),
    "never-started": (CANCEL,),
}


class Maker:
    def __init__(self, store: SqlStore) -> None:
        self.store = store
        self._jobs = 0

    async def job(self, command: str, histories: dict[str, tuple[Any, ...]], *, cancel: bool = False) -> None:
        self._jobs += 1
        at = MADE_AT + self._jobs / 1000
        identifier = job_id(at, self._jobs.to_bytes(10, "big"))
        fresh = Job(
            id=identifier,
            organization=ORGANIZATION,
            command=command,
            quorum="100%",
            run_timeout=300.0,
            kill_grace=5.0,
            created_by=ADMIN.label,
            created_at=at,
            updated_at=at,
            run_total=len(histories),
            input=InputRecord(args={"what": "wörld"}, env={"LEVEL": "3"}, stdin_bytes=5)
            if command == "given"
            else InputRecord(),
        )
        job = job_machine.admit(fresh, len(histories), at)
        runs = [self._run(job, node, steps, at) for node, steps in sorted(histories.items())]
        request = RequestKey(
            organization=ORGANIZATION, principal=ADMIN.label, request_id=f"request-{self._jobs}", digest=bytes(32)
        )
        stdin = b"input" if command == "given" else b""
        entry = started_entry(job, runs, ADMIN, "policy: role admin")
        await self.store.create_job(job, runs, request, stdin=stdin, audit=entry)
        if cancel:
            job = job_machine.request_cancel(job, at + 3)
            await self.store.write_job(job)
        ended = [await self._live(run, histories[run.node], at) for run in runs]
        if all(run.is_terminal for run in ended):
            digest, counts = RunsDigest(), {}
            for run in ended:
                digest.add(run)
                counts[run.state] = counts.get(run.state, 0) + 1
            job = job_machine.complete(job, counts, at + 6)
            await self.store.write_job(job, audit=digest.entry(job, at + 6))

    @staticmethod
    def _run(job: Job, node: str, steps: tuple[Any, ...], at: float) -> Run:
        identifier = run_id(job.id, node)
        return Run(
            id=identifier,
            job_id=job.id,
            organization=ORGANIZATION,
            node=node,
            nonce=hashlib.sha256(identifier.encode()).digest()[:16],
            route=Route.LEGACY if SENT_LEGACY in steps else None,
            created_at=at,
            updated_at=at,
        )

    async def _live(self, run: Run, steps: tuple[Any, ...], at: float) -> Run:
        written = False
        for number, step in enumerate(steps, start=1):
            told = step
            if isinstance(step, events.NodeReported):
                told = events.NodeReported(report=dataclasses.replace(step.report, run_id=run.id))
            run = run_machine.handle(run, told, at + number).run
            await self.store.write_run(run)
            if run.started_at is not None and not run.is_terminal and not written:
                written = True
                await self.store.append_output(run, _output(run.node))
        return run


def _output(node: str) -> list[OutputChunk]:
    first, second = f"{node} says\n".encode() + bytes(range(256)), b"and complains\n"
    last = b"x" * 70_000
    return [
        _chunk(StreamName.STDOUT, 0, 0, first),
        _chunk(StreamName.STDERR, len(first), 0, second),
        _chunk(StreamName.STDOUT, len(first) + len(second), len(first), last),
    ]


def _chunk(stream: StreamName, position: int, offset: int, data: bytes) -> OutputChunk:
    return OutputChunk(stream=stream, position=position, stream_offset=offset, read_at=MADE_AT + 2.5, data=data)


async def _people_and_nodes(store: SqlStore) -> None:
    # A fixed key would be a secret in the repository, and is not needed: nothing of the tests signs with it.
    key = generate_private_key(65537, 2048).public_key()
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    for name, role in (("admin", Role.ADMIN), ("olga", Role.OPERATOR), ("vera", Role.VIEWER)):
        await store.write_user(User(name=name, organization=ORGANIZATION, role=role, created_at=MADE_AT))
    await store.write_grant(Grant(organization=ORGANIZATION, user="olga", command="deploy-*", nodes="web-*"))
    await store.write_chef_principals(
        [
            ChefPrincipal(
                organization=ORGANIZATION, kind=kind, name=name, role=role, public_key=pem, created_at=MADE_AT
            )
            for kind, name, role in (
                (ChefPrincipalKind.USER, "olga", Role.OPERATOR),
                (ChefPrincipalKind.NODE, "schob", Role.NODE),
            )
        ]
    )
    for name in sorted({*_UNFINISHED, *_FINISHED, *_CANCELLED}):
        old = name.startswith("schob")
        node = Node(
            name=name,
            organization=ORGANIZATION,
            agent_instance="" if old or name == "pending" else INSTANCE,
            agent_version="" if old else "0.1.0",
            link=LinkMode.LEGACY if old else LinkMode.ATTACHED,
            tags={"role": "fixture"},
            enrolled_at=MADE_AT,
            last_seen_at=MADE_AT,
            presence=Presence.UP,
            presence_since=MADE_AT,
            presence_reason="attached",
        )
        status = NodeStatus(
            node=name, organization=ORGANIZATION, presence=Presence.UP, since=MADE_AT, reason="attached"
        )
        await store.write_node(node, status=status)
    for serial, subject in (("01", "node/running"), ("02", "user/olga"), ("03", "node/lost")):
        await store.write_certificate(
            serial=serial, organization=ORGANIZATION, subject=subject, expires_at=MADE_AT + 1e9
        )
    await store.revoke_certificates(ORGANIZATION, "node/lost")
    for number, node in ((1, "new-node"), (2, "used-node")):
        await store.write_enrollment_token(
            digest=bytes([number]) * 32, organization=ORGANIZATION, node=node, expires_at=MADE_AT + 1e9
        )
    await store.use_enrollment_token(digest=b"\2" * 32, organization=ORGANIZATION, node="used-node", now=MADE_AT)


async def _read(store: SqlStore) -> dict[str, Any]:
    jobs, _ = await store.list_jobs(JobFilter(organization=ORGANIZATION), limit=100, after="")
    read: dict[str, Any] = {"jobs": {}, "unfinished": sorted(job.job.id for job in await store.unfinished_jobs())}
    for job in jobs:
        snapshot = await store.snapshot_job(ORGANIZATION, job.id)
        assert snapshot is not None
        output = {}
        for run in snapshot.runs:
            for stream in StreamName:
                chunks = await store.read_output(run.id, stream=stream, offset=0, limit=1 << 20)
                output[f"{run.node} {stream}"] = hashlib.sha256(b"".join(chunk.data for chunk in chunks)).hexdigest()
        told = await store.read_events(job.id, after_seq=0, limit=1000, include_output=True)
        read["jobs"][job.id] = {
            "job": plain(job),
            "runs": {run.node: plain(run) for run in snapshot.runs},
            "output": output,
            "events": [event.seq for event in told],
        }
    read["users"] = [plain(user) for user in await store.load_users()]
    read["nodes"] = [plain(node) for node in await store.load_nodes()]
    read["chef"] = [plain(principal) for principal in await store.load_chef_principals()]
    read["grants"] = [plain(grant) for grant in await store.load_grants(ORGANIZATION, "olga")]
    read["revoked"] = list(await store.revoked_serials())
    read["head"] = str(await store.audit_head())
    return read


async def main(directory: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "private" / "store.sqlite3"
        path.parent.mkdir(mode=0o700)
        async with open_store(path) as store:
            await _people_and_nodes(store)
            maker = Maker(store)
            await maker.job("given", _FINISHED)
            await maker.job("hello", _CANCELLED, cancel=True)
            for node, steps in _UNFINISHED.items():
                await maker.job("true", {node: steps}, cancel=node == "cancelling")
            read = await _read(store)
        with sqlite3.connect(path) as file:
            file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            file.execute("PRAGMA journal_mode=DELETE")
        file.close()
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "store.sqlite3.xz").write_bytes(lzma.compress(path.read_bytes(), preset=9))
    (directory / "expected.json").write_text(json.dumps(read, indent=1, sort_keys=True) + "\n", "utf-8")


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]))
