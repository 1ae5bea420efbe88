"""The store without a file or a thread: for tests on a virtual clock, and as the contract's plainest reading.

Behaves as ``store.SqlStore``; one contract suite (``tests/store``) runs against both. Every write is its own commit and
is applied at once; a caller that is cancelled at the checkpoint after it does not hear of it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

import structlog
import trio

from lab.memory_audit import MemoryAudit
from shovey_trio.core.audit.records import AuditEntry
from shovey_trio.core.chef.principals import ChefPrincipal, ChefPrincipalKind
from shovey_trio.core.errors import HistoryGone, NotFound, RequestIdReused, StoreUnavailable
from shovey_trio.core.jobs.events import StoreRestored
from shovey_trio.core.jobs.model import (
    Grant,
    Job,
    Node,
    NodeStatus,
    OutputChunk,
    OutputExtent,
    Presence,
    Run,
    RunStatus,
    StreamName,
    User,
)
from shovey_trio.core.jobs.run_machine import handle
from shovey_trio.core.jobs.states import RunState
from shovey_trio.core.trust.rights import RevokedCertificate, Rights
from shovey_trio.store.contract import (
    Committed,
    CreatedJob,
    JobFilter,
    JobOverview,
    JobSnapshot,
    OutputPage,
    RequestKey,
    StoredEvent,
    StoredJob,
    StoredOutput,
    StoredRun,
)
from shovey_trio.store.sql.failures import StoreConflict
from shovey_trio.store.sql.job_reads import EVENT_OUTPUT_BYTES, jobs_listing, runs_listing
from shovey_trio.store.sql.nodes import statuses_listing
from shovey_trio.store.sql.output_reads import cut_chunk
from shovey_trio.store.sql.pages import Listing, decode_key, decode_page, encode_page

_log = structlog.get_logger(__name__)

T = TypeVar("T")


@dataclass(slots=True)
class _KeptJob:
    key: int
    job: Job
    runs: dict[str, Run]
    request: tuple[str, str, str] | None
    stdin: bytes
    history: list[StoredEvent] = field(default_factory=list)
    output: dict[str, list[OutputChunk]] = field(default_factory=dict)


@dataclass(slots=True)
class _Certificate:
    organization: str
    subject: str
    expires_at: float
    revoked: bool = False


@dataclass(slots=True)
class _Token:
    organization: str
    node: str
    expires_at: float
    used: bool = False
    holder: str | None = None


class MemoryStore(MemoryAudit):
    """See ``store.contract.Store`` for every method.

    ``fail`` makes it unavailable, as a full disk would, until ``heal``.
    """

    def __init__(self) -> None:
        super().__init__()
        self._failure = ""
        self._unwritten: list[Run] = []
        self._listeners: list[Callable[[Committed], None]] = []
        self._seq = 0
        self._keys = 0
        self._epoch = 0
        self._clock: float | None = None
        self._jobs: dict[str, _KeptJob] = {}
        self._runs: dict[str, tuple[str, str]] = {}
        self._requests: dict[tuple[str, str, str], tuple[bytes, str]] = {}
        self._nodes: dict[tuple[str, str], Node] = {}
        self._statuses: list[tuple[int, NodeStatus]] = []
        self._users: dict[tuple[str, str], User] = {}
        self._grants: dict[tuple[str, str, str, str], Grant] = {}
        self._chef_principals: dict[tuple[str, ChefPrincipalKind, str], ChefPrincipal] = {}
        self._certificates: dict[str, _Certificate] = {}
        self._tokens: dict[bytes, _Token] = {}

    def fail(self, reason: str) -> None:
        """From now on writes raise ``StoreUnavailable(reason)`` and change nothing; reads go on."""
        self._failure = reason

    def heal(self) -> None:
        """Writes work again, and those nobody waited for are made up for."""
        self._failure = ""
        unwritten, self._unwritten = self._unwritten, []
        for run in unwritten:
            self.write_run_soon(run)

    @property
    def failure(self) -> str:
        return self._failure

    def on_commit(self, listener: Callable[[Committed], None]) -> None:
        self._listeners.append(listener)

    async def create_job(
        self,
        job: Job,
        runs: Sequence[Run],
        request: RequestKey | None,
        *,
        stdin: bytes = b"",
        audit: AuditEntry | None = None,
    ) -> CreatedJob:
        async with _write(self):
            created = self._create_job(job, runs, request, stdin)
            self._record_change(audit, created)
            return created

    async def find_request(self, request: RequestKey) -> Job | None:
        await trio.lowlevel.checkpoint()
        return self._find_request(request)

    async def write_job(self, job: Job, *, audit: AuditEntry | None = None) -> None:
        async with _write(self):
            stored = self._stored(job.id)
            stored.job = replace(
                stored.job,
                updated_at=job.updated_at,
                state=job.state,
                cause=job.cause,
                detail=job.detail,
                finished_at=job.finished_at,
                cancel_requested=job.cancel_requested,
                run_total=job.run_total,
                run_counts=dict(job.run_counts),
                epoch=job.epoch,
            )
            self._record(stored, [StoredJob(seq=self._next_seq(), job=stored.job)])
            self._record_change(audit)

    async def write_run(self, run: Run, *, passed: Sequence[Run] = ()) -> None:
        async with _write(self):
            for each in (*passed, run):
                self._write_run(each)

    def write_run_soon(self, run: Run) -> None:
        if self._failure:
            self._unwritten.append(run)
            return
        try:
            self._write_run(run)
        except NotFound as error:
            _log.warning("store.write_dropped", error=str(error), kind=type(error).__name__)

    async def get_job(self, organization: str, job_id: str) -> Job | None:
        await trio.lowlevel.checkpoint()
        stored = self._find(organization, job_id)
        return None if stored is None else stored.job

    async def list_jobs(self, where: JobFilter, *, limit: int, after: str) -> tuple[Sequence[Job], str]:
        await trio.lowlevel.checkpoint()
        listing = jobs_listing(where)
        before = decode_key(listing, after) if after else self._keys + 1
        found = [
            (str(stored.key), stored.job)
            for stored in sorted(self._jobs.values(), key=lambda stored: -stored.key)
            if stored.key < before and _matches(stored.job, where)
        ]
        return _page(listing, found, limit)

    async def get_run(self, organization: str, job_id: str, node: str) -> Run | None:
        await trio.lowlevel.checkpoint()
        stored = self._find(organization, job_id)
        return None if stored is None else stored.runs.get(node)

    async def find_run(self, organization: str, run_id: str) -> Run | None:
        await trio.lowlevel.checkpoint()
        job_id, node = self._runs.get(run_id, ("", ""))
        stored = self._find(organization, job_id)
        return None if stored is None else stored.runs[node]

    async def list_runs(
        self, organization: str, job_id: str, *, states: frozenset[RunState], limit: int, after: str
    ) -> tuple[Sequence[Run], str]:
        await trio.lowlevel.checkpoint()
        listing = runs_listing(organization, job_id, states)
        last = decode_page(listing, after) if after else ""
        stored = self._find(organization, job_id)
        found = [
            (node, run)
            for node, run in sorted(stored.runs.items() if stored else ())
            if node > last and (not states or run.state in states)
        ]
        return _page(listing, found, limit)

    async def count_runs(self, organization: str, job_id: str) -> Mapping[RunState, int]:
        await trio.lowlevel.checkpoint()
        stored = self._find(organization, job_id)
        return {} if stored is None else dict(Counter(run.state for run in stored.runs.values()))

    async def raise_epochs(self, epoch: int) -> None:
        await trio.lowlevel.checkpoint()
        for stored in self._jobs.values():
            if not stored.job.is_terminal and stored.job.epoch < epoch:
                stored.job = replace(stored.job, epoch=epoch)

    async def unfinished_jobs(self) -> Sequence[JobSnapshot]:
        await trio.lowlevel.checkpoint()
        return tuple(
            replace(_snapshot(stored), stdin=stored.stdin)
            for stored in self._jobs.values()
            if not stored.job.is_terminal
        )

    async def snapshot_job(self, organization: str, job_id: str) -> JobSnapshot | None:
        await trio.lowlevel.checkpoint()
        stored = self._find(organization, job_id)
        return None if stored is None else _snapshot(stored)

    async def job_overview(self, organization: str, job_id: str) -> JobOverview | None:
        snapshot = await self.snapshot_job(organization, job_id)
        if snapshot is None:
            return None
        runs = [RunStatus(node=run.node, state=run.state, updated_at=run.updated_at) for run in snapshot.runs]
        return JobOverview(job=snapshot.job, runs=runs)

    async def read_events(
        self, job_id: str, *, after_seq: int, limit: int, include_output: bool
    ) -> Sequence[StoredEvent]:
        await trio.lowlevel.checkpoint()
        stored = self._jobs.get(job_id)
        if stored is None:
            raise HistoryGone(f"job {job_id} is not stored any more", job=job_id)
        found: list[StoredEvent] = []
        size = 0
        for event in stored.history[bisect_right(stored.history, after_seq, key=lambda event: event.seq) :]:
            if isinstance(event, StoredOutput):
                if not include_output:
                    continue
                if size and size + len(event.chunk.data) > EVENT_OUTPUT_BYTES:
                    break
                size += len(event.chunk.data)
            if len(found) == limit:
                break
            found.append(event)
        return tuple(found)

    async def append_output(self, run: Run, chunks: Sequence[OutputChunk], *, followed: bool = False) -> None:
        async with _write(self):
            stored = self._stored_run(run)
            output = stored.output.setdefault(run.node, [])
            chunks = [chunk for chunk in chunks if chunk.data]
            known = {chunk.position for chunk in output}
            if any(chunk.position in known for chunk in chunks):
                raise StoreConflict("a chunk with this position is stored already")
            output.extend(chunks)
            new = [
                StoredOutput(seq=self._next_seq(), job_id=run.job_id, node=run.node, chunk=chunk) for chunk in chunks
            ]
            self._record(stored, new, frozenset({(run.job_id, run.node)} if new else ()))

    async def output_extent(self, run_id: str) -> OutputExtent:
        await trio.lowlevel.checkpoint()
        return _extent(self._output(run_id))

    async def output_extents(self, run_ids: Sequence[str]) -> Mapping[str, OutputExtent]:
        await trio.lowlevel.checkpoint()
        return {run_id: _extent(self._output(run_id)) for run_id in run_ids}

    async def read_output(
        self, run_id: str, *, stream: StreamName | None, offset: int, limit: int
    ) -> Sequence[OutputChunk]:
        return (await self.read_output_page(run_id, stream=stream, offset=offset, limit=limit)).chunks

    async def read_output_page(self, run_id: str, *, stream: StreamName | None, offset: int, limit: int) -> OutputPage:
        await trio.lowlevel.checkpoint()
        job_id, node = self._runs.get(run_id, ("", ""))
        ended = not job_id or self._jobs[job_id].runs[node].is_terminal
        found: list[OutputChunk] = []
        size = 0
        for chunk in self._output(run_id):
            if stream is not None and chunk.stream is not stream:
                continue
            start = chunk.position if stream is None else chunk.stream_offset
            if start + len(chunk.data) <= offset:
                continue
            cut = cut_chunk(chunk, max(offset - start, 0))
            size += len(cut.data)
            if found and size > limit:
                return OutputPage(chunks=tuple(found), more=True, ended=ended)
            found.append(cut)
        return OutputPage(chunks=tuple(found), more=False, ended=ended)

    async def write_node(self, node: Node, *, status: NodeStatus | None = None, only_known: bool = False) -> None:
        async with _write(self):
            if only_known and (node.organization, node.name) not in self._nodes:
                return
            is_new = (node.organization, node.name) not in self._nodes
            self._nodes[node.organization, node.name] = node
            if is_new and status is None and node.presence is Presence.NEW:
                status = NodeStatus(
                    node=node.name,
                    organization=node.organization,
                    presence=node.presence,
                    since=node.presence_since,
                    reason=node.presence_reason,
                )
            if status is not None:
                self._statuses.append((self._next_key(), status))

    async def remove_node(self, organization: str, name: str, *, audit: AuditEntry | None = None) -> bool:
        async with _write(self):
            removed = self._nodes.pop((organization, name), None) is not None
            self._record_change(audit, removed)
            return removed

    async def load_nodes(self) -> Sequence[Node]:
        await trio.lowlevel.checkpoint()
        return tuple(node for _, node in sorted(self._nodes.items(), key=lambda item: item[0]))

    async def list_node_statuses(
        self, organization: str, name: str, *, limit: int, after: str
    ) -> tuple[Sequence[NodeStatus], str]:
        await trio.lowlevel.checkpoint()
        listing = statuses_listing(organization, name)
        before = decode_key(listing, after) if after else self._keys + 1
        found = [
            (str(key), status)
            for key, status in reversed(self._statuses)
            if key < before and (status.organization, status.node) == (organization, name)
        ]
        return _page(listing, found, limit)

    async def write_user(self, user: User, *, audit: AuditEntry | None = None) -> None:
        async with _write(self):
            self._users[user.organization, user.name] = user
            self._record_change(audit)

    async def remove_user(self, organization: str, name: str, *, audit: AuditEntry | None = None) -> bool:
        async with _write(self):
            removed = self._users.pop((organization, name), None) is not None
            self._record_change(audit, removed)
            return removed

    async def load_users(self) -> Sequence[User]:
        await trio.lowlevel.checkpoint()
        return tuple(user for _, user in sorted(self._users.items(), key=lambda item: item[0]))

    async def write_chef_principals(
        self, principals: Sequence[ChefPrincipal], *, audit: AuditEntry | None = None
    ) -> None:
        async with _write(self):
            for principal in principals:
                self._chef_principals[principal.organization, principal.kind, principal.name] = principal
            self._record_change(audit)

    async def remove_chef_principal(
        self, organization: str, kind: ChefPrincipalKind, name: str, *, audit: AuditEntry | None = None
    ) -> bool:
        async with _write(self):
            removed = self._chef_principals.pop((organization, kind, name), None) is not None
            self._record_change(audit, removed)
            return removed

    async def load_chef_principals(self) -> Sequence[ChefPrincipal]:
        await trio.lowlevel.checkpoint()
        return tuple(principal for _, principal in sorted(self._chef_principals.items(), key=lambda item: item[0]))

    async def write_grant(self, grant: Grant, *, audit: AuditEntry | None = None) -> None:
        async with _write(self):
            self._grants[grant.organization, grant.user, grant.command, grant.nodes] = grant
            self._record_change(audit)

    async def remove_grant(self, grant: Grant, *, audit: AuditEntry | None = None) -> bool:
        async with _write(self):
            key = (grant.organization, grant.user, grant.command, grant.nodes)
            removed = self._grants.pop(key, None) is not None
            self._record_change(audit, removed)
            return removed

    async def load_grants(self, organization: str, user: str) -> Sequence[Grant]:
        await trio.lowlevel.checkpoint()
        return tuple(grant for key, grant in sorted(self._grants.items()) if key[:2] == (organization, user))

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
        async with _write(self):
            if serial in self._certificates:
                raise StoreConflict(f"a certificate with serial {serial} is stored already")
            if renews in self._certificates and self._certificates[renews].revoked:
                return False
            self._certificates[serial] = _Certificate(organization, subject, expires_at)
            self._record_change(audit)
            return True

    async def revoke_certificates(
        self, organization: str, subject: str, *, audit: AuditEntry | None = None
    ) -> Sequence[str]:
        async with _write(self):
            serials = []
            for serial, certificate in sorted(self._certificates.items()):
                if (certificate.organization, certificate.subject) == (organization, subject):
                    certificate.revoked = True
                    serials.append(serial)
            self._record_change(audit)
            return tuple(serials)

    async def revoked_serials(self) -> Sequence[str]:
        await trio.lowlevel.checkpoint()
        return tuple(serial for serial, certificate in sorted(self._certificates.items()) if certificate.revoked)

    async def write_enrollment_token(
        self, *, digest: bytes, organization: str, node: str, expires_at: float, audit: AuditEntry | None = None
    ) -> None:
        async with _write(self):
            if digest in self._tokens:
                raise StoreConflict("this enrolment token is stored already")
            self._tokens[digest] = _Token(organization, node, expires_at)
            self._record_change(audit)

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
        async with _write(self):
            token = self._tokens.get(digest)
            if token is None or token.expires_at <= now or (token.used and not (holder and token.holder == holder)):
                return False
            if (token.organization, token.node) != (organization, node):
                return False
            for other in self._tokens.values():
                if (other.organization, other.node) == (organization, node):
                    other.holder = None
            token.used, token.holder = True, holder
            self._record_change(audit)
            return True

    async def read_rights(self) -> Rights:
        await trio.lowlevel.checkpoint()
        return Rights(
            revoked=tuple(
                RevokedCertificate(
                    serial=serial, organization=kept.organization, subject=kept.subject, expires_at=kept.expires_at
                )
                for serial, kept in sorted(self._certificates.items())
                if kept.revoked
            ),
            users=tuple(await self.load_users()),
            grants=tuple(grant for _, grant in sorted(self._grants.items())),
            chef_principals=tuple(await self.load_chef_principals()),
        )

    async def accept_restore(self, *, rights: Rights | None, now: float, audit: AuditEntry) -> Sequence[Run]:
        async with _write(self):
            self._tokens.clear()
            if rights is not None:
                for void in rights.revoked:
                    self._certificates[void.serial] = _Certificate(
                        void.organization, void.subject, void.expires_at, revoked=True
                    )
                self._users = {(user.organization, user.name): user for user in rights.users}
                self._grants = {
                    (grant.organization, grant.user, grant.command, grant.nodes): grant for grant in rights.grants
                }
                self._chef_principals = {(who.organization, who.kind, who.name): who for who in rights.chef_principals}
            live = [run for kept in self._jobs.values() if not kept.job.is_terminal for run in kept.runs.values()]
            unsure = [(run, handle(run, StoreRestored(), now).run) for run in live if not run.is_terminal]
            for run, restored in unsure:
                if restored is not run:
                    self._write_run(restored)
            self._record_change(audit)
            return [restored for run, restored in unsure if restored is not run]

    async def next_epoch(self, now: float) -> int:
        async with _write(self):
            self._epoch = max(self._epoch + 1, int(now))
            return self._epoch

    async def probe(self, now: float) -> None:
        async with _write(self):
            pass

    async def believe_clock(self, now: float, *, at_most_ahead: float) -> bool:
        async with _write(self):
            if self._clock is None:
                self._clock = max((stored.job.created_at for stored in self._jobs.values()), default=now)
            believed = now <= self._clock + at_most_ahead
            self._clock = max(self._clock, now) if believed else self._clock
            return believed

    async def delete_history(self, *, jobs_before: float, statuses_before: float, limit: int) -> int:
        async with _write(self):
            old = sorted(
                (stored.job.finished_at, job_id)
                for job_id, stored in self._jobs.items()
                if stored.job.is_terminal and stored.job.finished_at is not None
            )
            gone = [job_id for finished_at, job_id in old if finished_at < jobs_before][:limit]
            for job_id in gone:
                stored = self._jobs.pop(job_id)
                for run in stored.runs.values():
                    del self._runs[run.id]
                if stored.request is not None:
                    del self._requests[stored.request]
            self._statuses = [entry for entry in self._statuses if entry[1].since >= statuses_before]
            return len(gone)

    def _create_job(self, job: Job, runs: Sequence[Run], request: RequestKey | None, stdin: bytes) -> CreatedJob:
        key = None
        if request is not None:
            key = (request.organization, request.principal, request.request_id)
            known = self._find_request(request)
            if known is not None:
                return CreatedJob(job=known, created=False)
        by_node = {run.node: run for run in runs}
        if job.id in self._jobs or len(by_node) != len(runs) or any(run.id in self._runs for run in runs):
            raise StoreConflict("a job or run with this id, or a run for this node, is stored already")
        if request is not None and key is not None:
            self._requests[key] = (request.digest, job.id)
        stored = _KeptJob(key=self._next_key(), job=job, runs=by_node, request=key, stdin=stdin)
        self._jobs[job.id] = stored
        self._runs.update((run.id, (job.id, run.node)) for run in runs)
        created: list[StoredEvent] = [StoredJob(seq=self._next_seq(), job=job)]
        created += [StoredRun(seq=self._next_seq(), run=run) for run in runs]
        self._record(stored, created)
        return CreatedJob(job=job, created=True)

    def _find_request(self, request: RequestKey) -> Job | None:
        key = (request.organization, request.principal, request.request_id)
        digest, known = self._requests.get(key, (b"", ""))
        if not known:
            return None
        if digest != request.digest:
            raise RequestIdReused(f"request {request.request_id} was made before with another body", job_id=known)
        return self._jobs[known].job

    def _write_run(self, run: Run) -> None:
        stored = self._stored_run(run)
        stored.runs[run.node] = run
        self._record(stored, [StoredRun(seq=self._next_seq(), run=run)], frozenset({(run.job_id, run.node)}))

    def _record(
        self, stored: _KeptJob, new: Sequence[StoredEvent], runs: frozenset[tuple[str, str]] = frozenset()
    ) -> None:
        """Adds to a job's history and tells the listeners: the commit."""
        if not new:
            return
        stored.history.extend(new)
        committed = Committed(jobs={stored.job.id: new[-1].seq}, runs=runs)
        for listener in self._listeners:
            listener(committed)

    def _find(self, organization: str, job_id: str) -> _KeptJob | None:
        stored = self._jobs.get(job_id)
        return stored if stored is not None and stored.job.organization == organization else None

    def _stored(self, job_id: str) -> _KeptJob:
        try:
            return self._jobs[job_id]
        except KeyError:
            raise NotFound(f"job {job_id} is not stored", job=job_id) from None

    def _stored_run(self, run: Run) -> _KeptJob:
        if run.id not in self._runs:
            raise NotFound(f"run {run.id} of node {run.node} is not stored", run=run.id, job=run.job_id)
        return self._jobs[run.job_id]

    def _output(self, run_id: str) -> Sequence[OutputChunk]:
        if run_id not in self._runs:
            return ()
        job_id, node = self._runs[run_id]
        return self._jobs[job_id].output.get(node, ())

    def _next_seq(self) -> int:
        self._seq += 1
        return self._seq

    def _next_key(self) -> int:
        self._keys += 1
        return self._keys


@asynccontextmanager
async def _write(store: MemoryStore) -> AsyncIterator[None]:
    """A write: not begun in a cancelled scope, refused while the store fails, and a checkpoint once it is done."""
    await trio.lowlevel.checkpoint_if_cancelled()
    if store.failure:
        raise StoreUnavailable(store.failure)
    yield
    await trio.lowlevel.checkpoint()


def _matches(job: Job, where: JobFilter) -> bool:
    return (
        job.organization == where.organization
        and (not where.states or job.state in where.states)
        and where.command in ("", job.command)
        and where.created_by in ("", job.created_by)
    )


def _page(listing: Listing, found: Iterable[tuple[str, T]], limit: int) -> tuple[Sequence[T], str]:
    entries = list(found)
    shown = entries[:limit]
    return tuple(entry for _, entry in shown), encode_page(listing, shown[-1][0]) if len(entries) > limit else ""


def _snapshot(stored: _KeptJob) -> JobSnapshot:
    runs = tuple(run for _, run in sorted(stored.runs.items()))
    return JobSnapshot(seq=stored.history[-1].seq, job=stored.job, runs=runs)


def _extent(output: Sequence[OutputChunk]) -> OutputExtent:
    sizes = Counter[StreamName]()
    for chunk in output:
        sizes[chunk.stream] += len(chunk.data)
    return OutputExtent(stdout_bytes=sizes[StreamName.STDOUT], stderr_bytes=sizes[StreamName.STDERR])
