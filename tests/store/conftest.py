"""The two implementations of the store's contract, and values to put into them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from lab.memory_store import MemoryStore
from shovey_trio.core.ids import job_id, run_id
from shovey_trio.core.jobs.model import Job, Node, NodeStatus, OutputChunk, Presence, Run, StreamName
from shovey_trio.store.contract import Committed, RequestKey, Store
from shovey_trio.store.opening import open_store

NOW = 1_800_000_000.0


@pytest.fixture(params=["sqlite", "memory"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """Each implementation in turn."""
    if request.param == "memory":
        yield MemoryStore()
    else:
        async with open_store(tmp_path / "store.db") as opened:
            yield opened


@dataclass
class Make:
    """Makes values that differ from one another."""

    count: int = 0

    def job(self, nodes: Sequence[str] = ("web-1",), **fields: Any) -> tuple[Job, list[Run]]:
        self.count += 1
        values: dict[str, Any] = {
            "id": job_id(NOW + self.count, self.count.to_bytes(10, "big")),
            "organization": "default",
            "command": "true",
            "quorum": "100%",
            "run_timeout": 60.0,
            "kill_grace": 10.0,
            "created_by": "user/admin",
            "created_at": NOW + self.count,
            "updated_at": NOW + self.count,
            "run_total": len(nodes),
        }
        job = Job(**{**values, **fields})
        return job, [self.run(job, node) for node in nodes]

    def run(self, job: Job, node: str) -> Run:
        return Run(
            id=run_id(job.id, node),
            job_id=job.id,
            organization=job.organization,
            node=node,
            created_at=job.created_at,
            updated_at=job.created_at,
            nonce=self.count.to_bytes(16, "big"),
        )

    def request(self, request_id: str = "request-1", **fields: Any) -> RequestKey:
        key = RequestKey(organization="default", principal="user/admin", request_id=request_id, digest=b"body")
        return replace(key, **fields)

    def chunks(self, *pieces: tuple[StreamName, bytes], after: Sequence[OutputChunk] = ()) -> list[OutputChunk]:
        """Chunks that follow one another, and those in ``after``."""
        ends = {stream: sum(len(c.data) for c in after if c.stream is stream) for stream in StreamName}
        made = []
        for stream, data in pieces:
            made.append(
                OutputChunk(
                    stream=stream,
                    position=sum(ends.values()),
                    stream_offset=ends[stream],
                    read_at=NOW + 0.123456,
                    data=data,
                )
            )
            ends[stream] += len(data)
        return made

    def node(self, name: str = "web-1", **fields: Any) -> Node:
        values: dict[str, Any] = {"organization": "default", "enrolled_at": NOW, "presence_since": NOW}
        return Node(name=name, **{**values, **fields})

    def status(self, name: str = "web-1", since: float = NOW, presence: Presence = Presence.UP) -> NodeStatus:
        return NodeStatus(node=name, organization="default", presence=presence, since=since, reason="attached")


@pytest.fixture
def make() -> Make:
    return Make()


@pytest.fixture
def commits(store: Store) -> list[Committed]:
    """What the store tells its listeners, as it comes."""
    heard: list[Committed] = []
    store.on_commit(heard.append)
    return heard
