"""A store that fails, waits or is watched where a test says so."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from lab.memory_store import MemoryStore
from shovey_trio.core.audit.records import AuditEntry
from shovey_trio.core.jobs.model import Job, Node, NodeStatus, OutputChunk, Run
from shovey_trio.store.contract import CreatedJob, RequestKey

Failpoint = Callable[[str, str], Awaitable[None]]
"""Awaited with the name of a write and what is written (a job's id, or a node); what it raises, the write raises."""


async def _pass(write: str, subject: str) -> None:
    pass


class FailpointStore(MemoryStore):
    """A ``MemoryStore`` with two failpoints around every write of jobs, runs, output and nodes.

    Attributes:
        before: awaited before a write is applied: raising here leaves the store as it was.
        after: awaited after it: cancelling here is a caller that does not hear of its write.
        written: the writes that were applied, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.before: Failpoint = _pass
        self.after: Failpoint = _pass
        self.written: list[tuple[str, str]] = []

    async def create_job(
        self,
        job: Job,
        runs: Sequence[Run],
        request: RequestKey | None,
        *,
        stdin: bytes = b"",
        audit: AuditEntry | None = None,
    ) -> CreatedJob:
        await self.before("create_job", job.id)
        created = await super().create_job(job, runs, request, stdin=stdin, audit=audit)
        await self._applied("create_job", job.id)
        return created

    async def write_job(self, job: Job, *, audit: AuditEntry | None = None) -> None:
        await self.before("write_job", job.id)
        await super().write_job(job, audit=audit)
        await self._applied("write_job", job.id)

    async def write_run(self, run: Run, *, passed: Sequence[Run] = ()) -> None:
        await self.before("write_run", run.node)
        await super().write_run(run, passed=passed)
        await self._applied("write_run", run.node)

    async def append_output(self, run: Run, chunks: Sequence[OutputChunk], *, followed: bool = False) -> None:
        await self.before("append_output", run.node)
        await super().append_output(run, chunks, followed=followed)
        await self._applied("append_output", run.node)

    async def write_node(self, node: Node, *, status: NodeStatus | None = None, only_known: bool = False) -> None:
        await self.before("write_node", node.name)
        await super().write_node(node, status=status, only_known=only_known)
        await self._applied("write_node", node.name)

    async def _applied(self, write: str, subject: str) -> None:
        self.written.append((write, subject))
        await self.after(write, subject)
