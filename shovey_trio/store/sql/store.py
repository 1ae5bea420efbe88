"""``store.contract.Store`` on SQL: every write through the group writer, every read through the pool."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Concatenate, ParamSpec, TypeVar

from shovey_trio.core.audit.records import AuditEntry, AuditHead, AuditRecord
from shovey_trio.core.chef.principals import ChefPrincipal, ChefPrincipalKind
from shovey_trio.core.jobs.model import Grant, Job, Node, NodeStatus, OutputChunk, OutputExtent, Run, StreamName, User
from shovey_trio.core.jobs.states import RunState
from shovey_trio.core.trust.rights import Rights
from shovey_trio.observe import failpoints
from shovey_trio.store.contract import (
    CommitNews,
    Committed,
    CreatedJob,
    JobFilter,
    JobOverview,
    JobSnapshot,
    OutputPage,
    RequestKey,
    StoredEvent,
)
from shovey_trio.store.sql import audit as audit_log
from shovey_trio.store.sql import (
    counters,
    credentials,
    job_reads,
    job_writes,
    nodes,
    output_reads,
    people,
    restore,
    retention,
)
from shovey_trio.store.sql.audit import recorded
from shovey_trio.store.sql.health import StoreHealth
from shovey_trio.store.sql.reader import ReadPool
from shovey_trio.store.sql.transaction import WriteTransaction
from shovey_trio.store.sql.writer import BASE_COST, GroupWriter

P = ParamSpec("P")
T = TypeVar("T")


class SqlStore:
    """See ``store.contract.Store`` for every method; made by ``open_store``.

    Beyond the contract: ``write_job``, ``write_run`` and ``append_output`` raise ``NotFound`` for what is not stored
    (retention may have deleted it), and ``read_events`` cannot tell a job that never was from a deleted one.
    """

    def __init__(self, writer: GroupWriter, reader: ReadPool, health: StoreHealth, news: CommitNews) -> None:
        self._writer = writer
        self._reader = reader
        self._health = health
        self._news = news

    async def create_job(
        self,
        job: Job,
        runs: Sequence[Run],
        request: RequestKey | None,
        *,
        stdin: bytes = b"",
        audit: AuditEntry | None = None,
    ) -> CreatedJob:
        payload = len(runs) * BASE_COST + len(stdin)
        return await self._write(recorded(job_writes.create_job, audit), payload, job, tuple(runs), request, stdin)

    async def find_request(self, request: RequestKey) -> Job | None:
        return await self._reader.read(job_writes.find_request, request)

    async def write_job(self, job: Job, *, audit: AuditEntry | None = None) -> None:
        await self._write(recorded(job_writes.write_job, audit), 0, job)

    async def write_run(self, run: Run, *, passed: Sequence[Run] = ()) -> None:
        await self._write(job_writes.write_run, 0, run, passed)

    def write_run_soon(self, run: Run) -> None:
        self._writer.submit_nowait(lambda transaction: job_writes.write_run(transaction, run))

    async def get_job(self, organization: str, job_id: str) -> Job | None:
        return await self._reader.read(job_reads.get_job, organization, job_id)

    async def list_jobs(self, where: JobFilter, *, limit: int, after: str) -> tuple[Sequence[Job], str]:
        return await self._reader.read(job_reads.list_jobs, where, limit=limit, after=after)

    async def get_run(self, organization: str, job_id: str, node: str) -> Run | None:
        return await self._reader.read(job_reads.get_run, organization, job_id, node)

    async def find_run(self, organization: str, run_id: str) -> Run | None:
        return await self._reader.read(job_reads.find_run, organization, run_id)

    async def list_runs(
        self, organization: str, job_id: str, *, states: frozenset[RunState], limit: int, after: str
    ) -> tuple[Sequence[Run], str]:
        return await self._reader.read(
            job_reads.list_runs, organization, job_id, states=states, limit=limit, after=after
        )

    async def count_runs(self, organization: str, job_id: str) -> Mapping[RunState, int]:
        return await self._reader.read(job_reads.count_runs, organization, job_id)

    async def raise_epochs(self, epoch: int) -> None:
        await self._write(job_writes.raise_epochs, 0, epoch)

    async def unfinished_jobs(self) -> Sequence[JobSnapshot]:
        return await self._reader.read(job_reads.unfinished_jobs)

    async def snapshot_job(self, organization: str, job_id: str) -> JobSnapshot | None:
        return await self._reader.read(job_reads.snapshot_job, organization, job_id)

    async def job_overview(self, organization: str, job_id: str) -> JobOverview | None:
        return await self._reader.read(job_reads.job_overview, organization, job_id)

    async def read_events(
        self, job_id: str, *, after_seq: int, limit: int, include_output: bool
    ) -> Sequence[StoredEvent]:
        return await self._reader.read(
            job_reads.read_events, job_id, after_seq=after_seq, limit=limit, include_output=include_output
        )

    async def append_output(self, run: Run, chunks: Sequence[OutputChunk], *, followed: bool = False) -> None:
        payload = sum(len(chunk.data) for chunk in chunks)
        failpoints.passing("store.append_output.before")
        await self._writer.submit(
            lambda transaction: job_writes.append_output(transaction, run, tuple(chunks)),
            payload=payload,
            bulk=not followed,
        )
        failpoints.passing("store.append_output.after")

    async def output_extent(self, run_id: str) -> OutputExtent:
        return (await self.output_extents([run_id]))[run_id]

    async def output_extents(self, run_ids: Sequence[str]) -> Mapping[str, OutputExtent]:
        return await self._reader.read(output_reads.output_extents, run_ids)

    async def read_output(
        self, run_id: str, *, stream: StreamName | None, offset: int, limit: int
    ) -> Sequence[OutputChunk]:
        return (await self.read_output_page(run_id, stream=stream, offset=offset, limit=limit)).chunks

    async def read_output_page(self, run_id: str, *, stream: StreamName | None, offset: int, limit: int) -> OutputPage:
        return await self._reader.read(output_reads.read_output_page, run_id, stream=stream, offset=offset, limit=limit)

    async def write_node(self, node: Node, *, status: NodeStatus | None = None, only_known: bool = False) -> None:
        await self._write(nodes.write_node, 0, node, status, only_known)

    async def remove_node(self, organization: str, name: str, *, audit: AuditEntry | None = None) -> bool:
        return await self._write(recorded(nodes.remove_node, audit), 0, organization, name)

    async def load_nodes(self) -> Sequence[Node]:
        return await self._reader.read(nodes.load_nodes)

    async def list_node_statuses(
        self, organization: str, name: str, *, limit: int, after: str
    ) -> tuple[Sequence[NodeStatus], str]:
        return await self._reader.read(nodes.list_node_statuses, organization, name, limit=limit, after=after)

    async def write_user(self, user: User, *, audit: AuditEntry | None = None) -> None:
        await self._write(recorded(people.write_user, audit), 0, user)

    async def remove_user(self, organization: str, name: str, *, audit: AuditEntry | None = None) -> bool:
        return await self._write(recorded(people.remove_user, audit), 0, organization, name)

    async def load_users(self) -> Sequence[User]:
        return await self._reader.read(people.load_users)

    async def write_chef_principals(
        self, principals: Sequence[ChefPrincipal], *, audit: AuditEntry | None = None
    ) -> None:
        payload = sum(len(principal.public_key) for principal in principals)
        await self._write(recorded(people.write_chef_principals, audit), payload, tuple(principals))

    async def remove_chef_principal(
        self, organization: str, kind: ChefPrincipalKind, name: str, *, audit: AuditEntry | None = None
    ) -> bool:
        return await self._write(recorded(people.remove_chef_principal, audit), 0, organization, kind, name)

    async def load_chef_principals(self) -> Sequence[ChefPrincipal]:
        return await self._reader.read(people.load_chef_principals)

    async def write_grant(self, grant: Grant, *, audit: AuditEntry | None = None) -> None:
        await self._write(recorded(people.write_grant, audit), 0, grant)

    async def remove_grant(self, grant: Grant, *, audit: AuditEntry | None = None) -> bool:
        return await self._write(recorded(people.remove_grant, audit), 0, grant)

    async def load_grants(self, organization: str, user: str) -> Sequence[Grant]:
        return await self._reader.read(people.load_grants, organization, user)

    async def write_certificate(
        self,
        *,
        serial: str,
        organization: str,
        subject: str,
        expires_at: float,
        renews: str = "",
        audit: AuditEntry | None = None,
    ) -> bool:
        return await self._write(
            recorded(credentials.write_certificate, audit),
            0,
            serial=serial,
            organization=organization,
            subject=subject,
            expires_at=expires_at,
            renews=renews,
        )

    async def revoke_certificates(
        self, organization: str, subject: str, *, audit: AuditEntry | None = None
    ) -> Sequence[str]:
        return await self._write(recorded(credentials.revoke_certificates, audit), 0, organization, subject)

    async def revoked_serials(self) -> Sequence[str]:
        return await self._reader.read(credentials.revoked_serials)

    async def write_enrollment_token(
        self, *, digest: bytes, organization: str, node: str, expires_at: float, audit: AuditEntry | None = None
    ) -> None:
        await self._write(
            recorded(credentials.write_enrollment_token, audit),
            0,
            digest=digest,
            organization=organization,
            node=node,
            expires_at=expires_at,
        )

    async def use_enrollment_token(
        self,
        *,
        digest: bytes,
        organization: str,
        node: str,
        now: float,
        holder: str = "",
        audit: AuditEntry | None = None,
    ) -> bool:
        return await self._write(
            recorded(credentials.use_enrollment_token, audit),
            0,
            digest=digest,
            organization=organization,
            node=node,
            now=now,
            holder=holder,
        )

    async def read_rights(self) -> Rights:
        return await self._reader.read(restore.read_rights)

    async def accept_restore(self, *, rights: Rights | None, now: float, audit: AuditEntry) -> Sequence[Run]:
        return await self._write(recorded(restore.accept_restore, audit), 0, rights, now)

    async def append_audit(self, entries: Sequence[AuditEntry]) -> AuditHead:
        return await self._write(audit_log.append_audit, len(entries) * BASE_COST, tuple(entries))

    async def audit_head(self) -> AuditHead:
        return await self._reader.read(audit_log.audit_head)

    async def audit_start(self) -> AuditHead:
        return await self._reader.read(audit_log.audit_start)

    async def read_audit(
        self,
        *,
        after_seq: int,
        limit: int,
        organization: str = "",
        since: float | None = None,
        until: float | None = None,
    ) -> Sequence[AuditRecord]:
        return await self._reader.read(
            audit_log.read_audit,
            after_seq=after_seq,
            limit=limit,
            organization=organization,
            since=since,
            until=until,
        )

    async def prune_audit(self, *, before: float, now: float, organization: str) -> None:
        while await self._write(audit_log.prune_audit, 0, before, now, organization):
            pass

    async def next_epoch(self, now: float) -> int:
        return await self._write(counters.next_epoch, 0, now)

    async def probe(self, now: float) -> None:
        await self._write(counters.probe, 0, now)

    async def believe_clock(self, now: float, *, at_most_ahead: float) -> bool:
        return await self._write(counters.believe_clock, 0, now, at_most_ahead)

    async def delete_history(self, *, jobs_before: float, statuses_before: float, limit: int) -> int:
        """See the contract. Cancellation: jobs that disappeared stay so; the next call sweeps the rest of them."""
        deleted = await self._write(retention.hide_jobs, 0, jobs_before, limit)
        while await self._write(retention.sweep_jobs, 0):
            pass
        while await self._write(retention.sweep_statuses, 0, statuses_before):
            pass
        return deleted

    def on_commit(self, listener: Callable[[Committed], None]) -> None:
        self._news.on_commit(listener)

    @property
    def failure(self) -> str:
        return self._health.failure

    async def _write(
        self,
        work: Callable[Concatenate[WriteTransaction, P], T],
        payload: int,
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        point = f"store.{work.__name__}"
        failpoints.passing(f"{point}.before")
        result = await self._writer.submit(lambda transaction: work(transaction, *args, **kwargs), payload=payload)
        failpoints.passing(f"{point}.after")
        return result
