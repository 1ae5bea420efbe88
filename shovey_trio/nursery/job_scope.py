"""One job: a nursery with one task per run. The job is complete when the nursery has closed, never before."""

from __future__ import annotations

from collections.abc import Sequence

import structlog
import trio

from shovey_trio.core.audit.records import AuditEntry
from shovey_trio.core.audit.runs import RunsDigest
from shovey_trio.core.errors import StoreCorrupt
from shovey_trio.core.jobs.events import CancelAsked
from shovey_trio.core.jobs.job_machine import complete, crash, request_cancel
from shovey_trio.nursery.handles import JobHandle, RunHandle
from shovey_trio.nursery.persist import until_stored
from shovey_trio.nursery.run_scope import crash_run, failure_detail, supervise_run
from shovey_trio.nursery.services import Services

_log = structlog.get_logger(__name__)


async def supervise_job(handle: JobHandle, services: Services) -> None:
    """Supervises a running job until all of its runs are terminal and the job's own end is durable.

    Lets no exception of the job out: a failure makes this job ``crashed`` (``internal_error``), with those of its runs
    that had not ended, and other jobs go on. When cancelled (the daemon stops), everything stays as the store has it.

    Raises:
        StoreCorrupt: the shared store is beyond use.
    """
    try:
        with structlog.contextvars.bound_contextvars(job_id=handle.job.id):
            try:
                await _live(handle, services)
            except* StoreCorrupt:
                raise
            except* Exception as failures:  # noqa: BLE001 - a bug in one must not end its siblings
                _log.exception("job.failed", error=failure_detail(failures))
                await _crash(handle, services, failure_detail(failures))
    finally:
        handle.ended.set()


async def cancel_runs(
    handle: JobHandle,
    nodes: Sequence[str],
    *,
    by: str,
    whole_job: bool,
    services: Services,
    audit: AuditEntry | None = None,
) -> list[str]:
    """Asks runs to end and returns, once that is durable, the nodes whose run had not ended.

    Asked in slices, so that other tasks get their turns.

    Args:
        handle: the job.
        nodes: whose runs; each has one in this job.
        by: who asks.
        whole_job: whether that is the cancel of the job itself. It is one commit: once the job's row says so, the runs
            need no notes of their own before the orders leave, because a restart goes by the row.
        services: for the writes.
        audit: the record of the cancel of the whole job, for the same commit.
    """
    if whole_job:
        handle.job = request_cancel(handle.job, services.clock.now())
        await _write(handle, services, audit)
    asked: list[str] = []

    async def ask(run: RunHandle, node: str) -> None:
        if not run.run.is_terminal and await run.post_durably(CancelAsked(by=by, is_stored=whole_job)):
            asked.append(node)

    for start in range(0, len(nodes), services.bounds.slice):
        async with trio.open_nursery() as nursery:
            for node in nodes[start : start + services.bounds.slice]:
                nursery.start_soon(ask, handle.runs[node], node)
    return sorted(asked)


async def _live(handle: JobHandle, services: Services) -> None:
    runs = [run for run in handle.runs.values() if not run.run.is_terminal]
    async with trio.open_nursery() as nursery:
        for start in range(0, len(runs), services.bounds.slice):
            for run in runs[start : start + services.bounds.slice]:
                nursery.start_soon(supervise_run, run, handle, services)
            await trio.lowlevel.checkpoint()
    handle.job = complete(handle.job, +handle.counts, services.clock.now())
    await _write_end(handle, services)


async def _crash(handle: JobHandle, services: Services, detail: str) -> None:
    try:
        for run in handle.runs.values():
            if not run.run.is_terminal:
                await crash_run(run, services, detail)
        if not handle.job.is_terminal:
            handle.job = crash(handle.job, detail, +handle.counts, services.clock.now())
        await _write_end(handle, services)
    except StoreCorrupt:
        raise
    except Exception as error:  # noqa: BLE001 - not even its end can be written; the next start takes it up as it is
        _log.exception("job.abandoned", error=failure_detail(error))


async def _write_end(handle: JobHandle, services: Services) -> None:
    """Writes the job's end together with its record in the audit log: one for the job, with a digest of its runs."""
    digest = RunsDigest()
    nodes = sorted(handle.runs)
    for start in range(0, len(nodes), services.bounds.slice):
        for node in nodes[start : start + services.bounds.slice]:
            digest.add(handle.runs[node].run)
        await trio.lowlevel.checkpoint()
    await _write(handle, services, digest.entry(handle.job, services.clock.now()))


async def _write(handle: JobHandle, services: Services, audit: AuditEntry | None = None) -> None:
    async def write() -> None:
        job = handle.job
        await services.store.write_job(job, audit=audit)
        handle.stored = job

    await until_stored(write, longest_pause=services.timing.store_retry)
