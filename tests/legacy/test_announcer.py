"""News on the ring: small, slow, and never in anybody's way – on virtual time."""

from __future__ import annotations

import json

import trio

from lab.memory_store import MemoryStore
from shovey_trio.application.announcer import INTERVAL, JOB_EVENT, NODE_EVENT, Announcer
from shovey_trio.core.errors import SerfUnavailable
from shovey_trio.core.jobs.model import Job, NodeStatus, Presence
from shovey_trio.core.jobs.states import JobState
from shovey_trio.store.contract import Committed


def _job(number: int, state: JobState = JobState.RUNNING, command: str = "work") -> Job:
    return Job(
        id=f"job-{number}",
        organization="o",
        command=command,
        quorum="100%",
        run_timeout=1.0,
        kill_grace=1.0,
        created_by="user/a",
        created_at=1.0,
        updated_at=1.0,
        state=state,
    )


def _status(node: str) -> NodeStatus:
    return NodeStatus(node=node, organization="o", presence=Presence.UP, since=1.0, reason="heartbeat")


class Ring:
    """Takes events, or does not."""

    def __init__(self) -> None:
        self.heard: list[tuple[float, str, dict[str, object]]] = []
        self.away = False

    async def announce(self, name: str, payload: bytes) -> None:
        await trio.lowlevel.checkpoint()
        if self.away:
            raise SerfUnavailable("away")
        assert len(name) + len(payload) < 470
        self.heard.append((trio.current_time(), name, json.loads(payload)))


async def test_a_job_is_told_once_per_state_and_a_node_per_change(autojump_clock: object) -> None:
    store, ring = MemoryStore(), Ring()
    announcer = Announcer(organization="o", store=store, announce=ring.announce)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(announcer.serve)
        await store.create_job(_job(1, command="x" * 256), [], None)
        for _ in range(3):
            announcer.committed(Committed(jobs={"job-1": 1}, runs=frozenset()))
            await trio.sleep(3)
        await store.write_job(_job(1, JobState.COMPLETE))
        announcer.committed(Committed(jobs={"job-1": 1, "of another organization": 1}, runs=frozenset()))
        announcer.presence_changed(_status("n"))
        await trio.sleep(5)
        told = [(name, said.get("state") or said.get("presence")) for _, name, said in ring.heard]
        assert told == [(JOB_EVENT, "running"), (JOB_EVENT, "complete"), (NODE_EVENT, "up")]
        assert ring.heard[0][2]["command"] == "x" * 64
        nursery.cancel_scope.cancel(reason="the test is over")


async def test_what_comes_too_fast_is_dropped_and_the_ring_keeps_its_pace(autojump_clock: object) -> None:
    ring = Ring()
    announcer = Announcer(organization="o", store=MemoryStore(), announce=ring.announce)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(announcer.serve)
        for number in range(500):
            announcer.presence_changed(_status(f"n{number}"))
        announcer.presence_changed(_status("g" * 2000))
        await trio.sleep(200)
        assert len(ring.heard) == 60
        assert announcer.dropped == 441
        times = [at for at, _, _ in ring.heard]
        assert times[-1] - times[0] >= 59 * INTERVAL
        nursery.cancel_scope.cancel(reason="the test is over")


async def test_a_ring_that_is_away_costs_nothing_but_the_news(autojump_clock: object) -> None:
    ring = Ring()
    ring.away = True
    announcer = Announcer(organization="o", store=MemoryStore(), announce=ring.announce)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(announcer.serve)
        announcer.presence_changed(_status("a"))
        await trio.sleep(10)
        ring.away = False
        announcer.presence_changed(_status("b"))
        await trio.sleep(10)
        assert [said["node"] for _, _, said in ring.heard] == ["b"]
        assert announcer.dropped == 1
        nursery.cancel_scope.cancel(reason="the test is over")
