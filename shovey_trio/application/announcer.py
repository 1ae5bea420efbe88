"""News of jobs and nodes as serf user events, for whoever listens on the ring (``serf.event_announce``).

A courtesy, not a record: gossip is shared by the whole cluster, so at most one event a second goes out, and what comes
faster than that is dropped, oldest last. Of a job that changes twice meanwhile, the newer state alone is told. Nobody
signs these events, and any member can send one like them: nothing of ours acts on them.

==================== ==============================================================================
event                payload: one JSON object
==================== ==============================================================================
``shovey-trio-job``  ``id``, ``state``, ``command`` (cut where it is long), ``organization``, ``at``
``shovey-trio-node`` ``node``, ``presence``, ``reason``, ``organization``, ``at``
==================== ==============================================================================
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
import trio

from shovey_trio.core.errors import ShoveyError
from shovey_trio.core.jobs.model import NodeStatus
from shovey_trio.core.jobs.states import JobState
from shovey_trio.store.contract import Committed, JobHistory

_log = structlog.get_logger(__name__)

JOB_EVENT: Final = "shovey-trio-job"
NODE_EVENT: Final = "shovey-trio-node"
INTERVAL: Final = 1.0
# Serf's limit is 512 bytes with its own fields around the payload, some 40 and the name.
_PAYLOAD: Final = 400
_COMMAND: Final = 64
# What may wait, about 200 bytes each: a minute's worth. Beyond that the newest are dropped.
_WAITING: Final = 60
# Last states told, so that the many commits of one job are not as many events.
_TOLD: Final = 2_000
_DEADLINE: Final = 5.0

Announce = Callable[[str, bytes], Awaitable[None]]


class Announcer:
    """Tells the ring. ``serve`` must run; ``committed`` and ``presence_changed`` are its ears."""

    def __init__(self, *, organization: str, store: JobHistory, announce: Announce) -> None:
        self._organization = organization
        self._store = store
        self._announce = announce
        self._waiting: OrderedDict[tuple[str, str], NodeStatus | None] = OrderedDict()
        self._told: OrderedDict[str, JobState] = OrderedDict()
        self._work = trio.Event()
        self.dropped = 0

    def committed(self, committed: Committed) -> None:
        """Notes which jobs a commit has touched."""
        for job_id in committed.jobs:
            self._note((JOB_EVENT, job_id), None)

    def presence_changed(self, status: NodeStatus) -> None:
        """Notes a change of a node's presence."""
        self._note((NODE_EVENT, status.node), status)

    async def serve(self) -> None:
        """Tells, one by one, until cancelled. What serf does not take is dropped."""
        while True:
            await self._work.wait()
            while self._waiting:
                (event, name), status = self._waiting.popitem(last=False)
                payload = await self._job(name) if status is None else _node(status)
                if payload is not None:
                    await self._tell(event, payload)
                    await trio.sleep(INTERVAL)
            self._work = trio.Event()

    async def _tell(self, event: str, payload: bytes) -> None:
        try:
            with trio.fail_after(_DEADLINE):
                await self._announce(event, payload)
        except (ShoveyError, trio.TooSlowError) as error:
            self.dropped += 1
            _log.info("announcement.dropped", event_name=event, error=str(error))

    async def _job(self, job_id: str) -> bytes | None:
        try:
            job = await self._store.get_job(self._organization, job_id)
        except ShoveyError:
            return None
        if job is None or self._told.get(job_id) is job.state:
            return None
        self._told[job_id] = job.state
        self._told.move_to_end(job_id)
        while len(self._told) > _TOLD:
            self._told.popitem(last=False)
        return _payload(
            id=job.id,
            state=job.state.value,
            command=job.command[:_COMMAND],
            organization=job.organization,
            at=job.updated_at,
        )

    def _note(self, key: tuple[str, str], status: NodeStatus | None) -> None:
        if key not in self._waiting and len(self._waiting) >= _WAITING:
            self.dropped += 1
            return
        self._waiting[key] = status
        self._work.set()


def _node(status: NodeStatus) -> bytes | None:
    return _payload(
        node=status.node,
        presence=status.presence.value,
        reason=status.reason,
        organization=status.organization,
        at=status.since,
    )


def _payload(**fields: object) -> bytes | None:
    """None for what is too long to be told: a name of hundreds of bytes."""
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    return text if len(text) <= _PAYLOAD else None
