"""What is kept of jobs, nodes and people, and what a store promises: values and protocols, no SQL.

There is a small protocol for each of those who need a store, and ``Store`` has them all; a signature names the smallest
that will do. ``store.sql`` implements them, ``lab.memory_store`` is their plainest reading, and one contract suite
(``tests/store``) holds both to them. It is one file, though a long one, because whoever adds a store reads all of it.

* Every ``async`` write is durable (fsync) when it returns, in one group commit with whatever else waits: committed at
  once when the writer is idle, batched only with what arrives while a commit runs. Writes are applied in the order in
  which they were called, but for output.
* Any method may be cancelled at any await without harm. A write that was started is finished all the same; its caller
  just does not hear of it.
* Commit sequence numbers grow with every stored event of a job, in the order of commits, and are never used twice for
  it. Those of different jobs say nothing about one another.
* A write that takes an ``audit`` entry commits the record together with what it records, unless it changed nothing
  (removed nothing, created nothing): an acknowledged action has its record.
* What is written once (events, output, the end of a run) is checked when it is read: ``RowDamaged`` names what is not
  as it was written, and everything else is served.
* Every method raises ``StoreUnavailable`` when it cannot write or read now (disk full, locked, I/O error), and then
  nothing of the call was applied; and ``StoreCorrupt`` when the file is damaged, which is final.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Protocol

from shovey_trio.core.audit.records import AuditEntry, AuditHead, AuditRecord
from shovey_trio.core.chef.principals import ChefPrincipal, ChefPrincipalKind
from shovey_trio.core.jobs.model import (
    Grant,
    Job,
    Node,
    NodeStatus,
    OutputChunk,
    OutputExtent,
    Run,
    RunStatus,
    StreamName,
    User,
)
from shovey_trio.core.jobs.states import JobState, RunState
from shovey_trio.core.trust.rights import Rights


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestKey:
    """What makes the creation of a job idempotent: principal, id, and a digest of the request's body."""

    organization: str
    principal: str
    request_id: str
    digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatedJob:
    """A job that is durable; ``created`` is False when an earlier request with the same key made it."""

    job: Job
    created: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredJob:
    """A job's row was written."""

    seq: int
    job: Job


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRun:
    """A run's row was written."""

    seq: int
    run: Run


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredOutput:
    """A chunk of output was written."""

    seq: int
    job_id: str
    node: str
    chunk: OutputChunk


StoredEvent = StoredJob | StoredRun | StoredOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """What one commit touched: the last sequence number per job, and the runs that there is news of.

    Attributes:
        jobs: job id → last commit sequence.
        runs: (job id, node) of every run that was written, or has new output; not those of a job that is new.
    """

    jobs: Mapping[str, int]
    runs: AbstractSet[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOverview:
    """A job and how far each of its runs is, by node name."""

    job: Job
    runs: Sequence[RunStatus]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputPage:
    """A stretch of a run's output, as of one moment.

    Attributes:
        chunks: in order.
        more: whether more of it is durable than was asked for at a time.
        ended: whether the run had ended, so that what is durable is all there will ever be.
    """

    chunks: Sequence[OutputChunk]
    more: bool
    ended: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSnapshot:
    """A job with all its runs as of one commit sequence; its standard input only from ``unfinished_jobs``."""

    seq: int
    job: Job
    runs: tuple[Run, ...]
    stdin: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which jobs a listing shows; empty means all."""

    organization: str
    states: frozenset[JobState] = frozenset()
    command: str = ""
    created_by: str = ""


class RunLookup(Protocol):
    """One run, by where it is or by its id."""

    async def get_run(self, organization: str, job_id: str, node: str) -> Run | None: ...

    async def find_run(self, organization: str, run_id: str) -> Run | None: ...


class OutputStore(RunLookup, Protocol):
    """The output of runs."""

    async def append_output(self, run: Run, chunks: Sequence[OutputChunk], *, followed: bool = False) -> None:
        """Stores chunks that continue the run's output exactly (the caller has checked position and offsets).

        Other writes, those of ``followed`` output among them, may overtake it.
        """
        ...

    async def output_extent(self, run_id: str) -> OutputExtent: ...

    async def output_extents(self, run_ids: Sequence[str]) -> Mapping[str, OutputExtent]: ...

    async def read_output(
        self, run_id: str, *, stream: StreamName | None, offset: int, limit: int
    ) -> Sequence[OutputChunk]:
        """Chunks from ``offset`` (of that stream, or of both) on; the first is cut to start there exactly.

        At most ``limit`` bytes, but at least one chunk if there is any.
        """
        ...

    async def read_output_page(self, run_id: str, *, stream: StreamName | None, offset: int, limit: int) -> OutputPage:
        """As ``read_output``, with what a follower has to know. A run that is not stored any more has ended."""
        ...


class LiveJobs(OutputStore, Protocol):
    """What the nurseries of jobs write, and what they go on from after a restart."""

    async def create_job(
        self,
        job: Job,
        runs: Sequence[Run],
        request: RequestKey | None,
        *,
        stdin: bytes = b"",
        audit: AuditEntry | None = None,
    ) -> CreatedJob:
        """Stores a job with its runs, and the standard input of its command, once per request key.

        Raises:
            RequestIdReused: the key's id was used with another digest.
        """
        ...

    async def write_job(self, job: Job, *, audit: AuditEntry | None = None) -> None: ...

    async def write_run(self, run: Run, *, passed: Sequence[Run] = ()) -> None:
        """Stores a run, and before that as events the states it has passed through since it was last written."""
        ...

    def write_run_soon(self, run: Run) -> None:
        """Queues a write that nobody waits for; it keeps its place in the order of writes.

        Only ``dispatched``, and a run's note of a cancel that its job's row has.
        """
        ...

    async def raise_epochs(self, epoch: int) -> None:
        """Gives every job that is not terminal this epoch, unless it has a higher one; at start, before recovery."""
        ...

    async def unfinished_jobs(self) -> Sequence[JobSnapshot]:
        """Every job that is not terminal, for recovery at start; without what is damaged, so that the rest lives."""
        ...


class JobHistory(RunLookup, Protocol):
    """What can be asked of jobs, live or ended."""

    async def find_request(self, request: RequestKey) -> Job | None:
        """The job that an earlier request with this key has made.

        Raises:
            RequestIdReused: the key's id was used with another digest.
        """
        ...

    async def get_job(self, organization: str, job_id: str) -> Job | None: ...

    async def list_jobs(self, where: JobFilter, *, limit: int, after: str) -> tuple[Sequence[Job], str]:
        """Newest first. ``after`` is the opaque continuation of the page before ('' for the first); '' ends it.

        Raises:
            InvalidToken: ``after`` is not a continuation of this listing.
        """
        ...

    async def list_runs(
        self, organization: str, job_id: str, *, states: frozenset[RunState], limit: int, after: str
    ) -> tuple[Sequence[Run], str]:
        """By node name; paging as in ``list_jobs``."""
        ...

    async def count_runs(self, organization: str, job_id: str) -> Mapping[RunState, int]: ...

    async def job_overview(self, organization: str, job_id: str) -> JobOverview | None:
        """A job with how far its runs are, as of one commit: what can be asked for again and again."""
        ...


class JobFeed(Protocol):
    """What watchers of a job read."""

    async def snapshot_job(self, organization: str, job_id: str) -> JobSnapshot | None:
        """A consistent picture: events after ``seq`` are exactly those the picture does not hold."""
        ...

    async def read_events(
        self, job_id: str, *, after_seq: int, limit: int, include_output: bool
    ) -> Sequence[StoredEvent]:
        """Stored events of a job with ``seq > after_seq``, in order: at most ``limit``, and 256 KiB of output.

        Raises:
            HistoryGone: retention deleted events after ``after_seq``.
        """
        ...


class CommitNews(Protocol):
    """Word of commits: of this process's own before their writers go on, of others' some seconds later at most."""

    def on_commit(self, listener: Callable[[Committed], None]) -> None:
        """Registers a function that is called in the trio thread after every commit that touched a job.

        Word of others' commits may come merged, twice, or after that of later ones.
        """
        ...


class NodeStore(Protocol):
    """Nodes and the history of their presence."""

    async def write_node(self, node: Node, *, status: NodeStatus | None = None, only_known: bool = False) -> None:
        """Stores a node and, when given, appends to its presence history, which begins with its registration.

        Args:
            only_known: write nothing for a node that is not stored (any more), so that what a command has removed
                beside the daemon does not come back by the daemon's next word about it.
        """
        ...

    async def remove_node(self, organization: str, name: str, *, audit: AuditEntry | None = None) -> bool: ...

    async def load_nodes(self) -> Sequence[Node]: ...

    async def list_node_statuses(
        self, organization: str, name: str, *, limit: int, after: str
    ) -> tuple[Sequence[NodeStatus], str]:
        """Newest first; paging as in ``list_jobs``."""
        ...


class UserStore(Protocol):
    """Users."""

    async def write_user(self, user: User, *, audit: AuditEntry | None = None) -> None: ...

    async def remove_user(self, organization: str, name: str, *, audit: AuditEntry | None = None) -> bool: ...

    async def load_users(self) -> Sequence[User]: ...


class ChefPrincipalStore(Protocol):
    """Who may sign requests with a Chef key."""

    async def write_chef_principals(
        self, principals: Sequence[ChefPrincipal], *, audit: AuditEntry | None = None
    ) -> None:
        """Stores principals in one commit, each in place of the one of the same kind and name."""
        ...

    async def remove_chef_principal(
        self, organization: str, kind: ChefPrincipalKind, name: str, *, audit: AuditEntry | None = None
    ) -> bool: ...

    async def load_chef_principals(self) -> Sequence[ChefPrincipal]:
        """By organization, kind and name."""
        ...


class GrantStore(Protocol):
    """What narrows operators."""

    async def write_grant(self, grant: Grant, *, audit: AuditEntry | None = None) -> None:
        """Stores a grant; the same again changes nothing."""
        ...

    async def remove_grant(self, grant: Grant, *, audit: AuditEntry | None = None) -> bool: ...

    async def load_grants(self, organization: str, user: str) -> Sequence[Grant]:
        """A user's grants, by command and nodes. They outlive the user and hold for the next of that name."""
        ...


class CredentialStore(Protocol):
    """Certificates that were issued, and enrolment tokens."""

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
        """Records an issued certificate; ``subject`` is a principal's label such as ``node/web-1``.

        Args:
            renews: serial of the certificate that it was issued for. When that is revoked nothing is written and False
                is returned, so that no renewal that is under way escapes a revocation.
        """
        ...

    async def revoke_certificates(
        self, organization: str, subject: str, *, audit: AuditEntry | None = None
    ) -> Sequence[str]:
        """Marks every certificate of ``subject`` as revoked and returns their serials."""
        ...

    async def revoked_serials(self) -> Sequence[str]: ...

    async def write_enrollment_token(
        self, *, digest: bytes, organization: str, node: str, expires_at: float, audit: AuditEntry | None = None
    ) -> None:
        """Stores the SHA-256 of a token."""
        ...

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
        """Uses a token up for ``holder``; False when it is unknown, expired, bound to another name or used by another.

        The same holder may use it again, until another token of the node is used; without one, nobody may.
        """
        ...


class AuditStore(Protocol):
    """The audit log."""

    async def append_audit(self, entries: Sequence[AuditEntry]) -> AuditHead:
        """Records what no other write carries; returns the head after it."""
        ...

    async def audit_head(self) -> AuditHead:
        """The place of the last record."""
        ...

    async def audit_start(self) -> AuditHead:
        """What the first record follows: ``GENESIS``, or the last record that was pruned."""
        ...

    async def read_audit(
        self,
        *,
        after_seq: int,
        limit: int,
        organization: str = "",
        since: float | None = None,
        until: float | None = None,
    ) -> Sequence[AuditRecord]:
        """Up to ``limit`` records after a number, in order; of one organization and of ``since <= at < until``."""
        ...


class RestorableStore(AuditStore, Protocol):
    """What is kept beside a store, and what an older copy of it is put right with."""

    async def read_rights(self) -> Rights:
        """Who may do what, as of one moment."""
        ...

    async def accept_restore(self, *, rights: Rights | None, now: float, audit: AuditEntry) -> Sequence[Run]:
        """Puts an older copy right, in one commit, before anything else is done with it; again does no harm.

        Every enrolment token is void. Rights are those given: certificates that were revoked are, and users, grants and
        Chef principals are these; without, they are as in the copy. Every run that has not ended is unknown
        (``store_restored``), and no order goes out to start it. Returns those.
        """
        ...


class Housekeeping(Protocol):
    """The store itself: its health, its age, and what is too old to keep."""

    async def next_epoch(self, now: float) -> int:
        """``max(stored + 1, int(now))``, stored before it is returned."""
        ...

    async def probe(self, now: float) -> None:
        """Writes something that means nothing, durably: finds out whether a store that failed can write again."""
        ...

    async def believe_clock(self, now: float, *, at_most_ahead: float) -> bool:
        """Whether a time is at most so many seconds ahead of the latest one that was believed; it is believed then.

        Of a store that has believed none, the newest record counts, and any time if there is no record.
        """
        ...

    async def delete_history(self, *, jobs_before: float, statuses_before: float, limit: int) -> int:
        """Deletes up to ``limit`` terminal jobs finished before a time (with runs, events, output), and old presence.

        Returns the number of deleted jobs: the caller comes again while it equals ``limit``.
        """
        ...

    async def prune_audit(self, *, before: float, now: float, organization: str) -> None:
        """Deletes records older than a time from the log's beginning, and records that in the same commits.

        A checkpoint keeps the hash of the last one that is gone, so that what is left can still be verified.
        """
        ...

    @property
    def failure(self) -> str:
        """Why writes fail at present; '' while the last one worked. For health."""
        ...


class Store(
    LiveJobs,
    JobHistory,
    JobFeed,
    CommitNews,
    NodeStore,
    UserStore,
    ChefPrincipalStore,
    GrantStore,
    CredentialStore,
    RestorableStore,
    Housekeeping,
    Protocol,
):
    """All of it: what is opened, and handed out in parts."""
