"""Where a job is: here, with another controller, or nowhere any more.

"Not live here" does not mean "ended": another controller may have it, or it is durable and not yet taken up.
"""

from __future__ import annotations

from dataclasses import dataclass

from shovey_trio.core.jobs.model import Job
from shovey_trio.nursery.handles import JobHandle
from shovey_trio.nursery.supervisor import Supervisor
from shovey_trio.store.contract import JobHistory


@dataclass(frozen=True, slots=True)
class Here:
    """The job lives in this controller."""

    handle: JobHandle


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """The job has not ended and does not live here; ``job`` is as stored. What is written is heard where it lives."""

    job: Job


@dataclass(frozen=True, slots=True)
class Ended:
    """The job has ended; ``job`` is as stored."""

    job: Job


class JobDirectory:
    """Finds jobs by their ids."""

    def __init__(self, store: JobHistory, supervisor: Supervisor) -> None:
        self._store = store
        self._supervisor = supervisor

    async def find(self, organization: str, job_id: str) -> Here | Elsewhere | Ended | None:
        """Where an organization's job is; None when there is none of this id.

        A job that lives here is found without a read, so that clients who ask again and again cost none.

        Raises:
            StoreUnavailable: it cannot be said now.
        """
        if (live := self._here(organization, job_id)) is not None:
            return live
        job = await self._store.get_job(organization, job_id)
        if job is None:
            return None
        if job.is_terminal:
            return Ended(job)
        # It may have been stored and opened while it was being looked for.
        return self._here(organization, job_id) or Elsewhere(job)

    def _here(self, organization: str, job_id: str) -> Here | None:
        live = self._supervisor.job(job_id)
        return None if live is None or live.stored.organization != organization else Here(live)
