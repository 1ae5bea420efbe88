"""Watching: exactly what is durable, each event once, whatever the interleaving – at no cost for being slow."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.fake_agents import Script
from lab.memory_store import MemoryStore
from lab.nursery_rig import OPERATOR
from shovey_trio.application.audit import CallOrigin, set_origin
from shovey_trio.core.errors import NotFound, OffsetOutOfRange, Overloaded
from shovey_trio.core.jobs.model import Job, OutputChunk, Run, StreamName
from shovey_trio.core.jobs.states import JobState, RunState
from shovey_trio.nursery.ports import SendFollow, ToAgent
from shovey_trio.nursery.settings import Bounds
from shovey_trio.nursery.watch import CommitHub, WatchPosition, follow_output, watch_job
from shovey_trio.store.contract import (
    Committed,
    JobSnapshot,
    OutputPage,
    StoredEvent,
    StoredJob,
    StoredOutput,
    StoredRun,
)
from tests.nursery.conftest import Fleet, open_fleet, until

NODES = ("a", "b")
JOB = Job(
    id="01a3185c-5000-7224-aae6-b12288580d84",
    organization="default",
    command="work",
    quorum="1",
    run_timeout=60,
    kill_grace=10,
    created_by="user/ops",
    created_at=1.0,
    updated_at=1.0,
    state=JobState.RUNNING,
    run_total=2,
)
RUNS = tuple(
    Run(id=f"run-{node}", job_id=JOB.id, organization="default", node=node, created_at=1, updated_at=1, nonce=b"n" * 16)
    for node in NODES
)


class _Interrupted(Exception):
    """The watcher's connection breaks."""


class _Watcher:
    """A client that keeps what it was given and comes back with its token when its stream breaks."""

    def __init__(self, store: MemoryStore, hub: CommitHub, dice: random.Random, *, output: bool) -> None:
        self.store, self.hub, self.dice, self.output = store, hub, dice, output
        self.snapshot: JobSnapshot | None = None
        self.events: list[StoredEvent] = []
        self.position: WatchPosition | None = None

    async def run(self) -> None:
        while True:
            try:
                await watch_job(
                    store=self.store,
                    hub=self.hub,
                    who="",
                    organization="default",
                    job_id=JOB.id,
                    position=self.position,
                    include_output=self.output,
                    snapshot=self._take_snapshot,
                    event=self._take_event,
                )
            except _Interrupted:
                await _some_steps(self.dice)
            else:
                return

    async def _take_snapshot(self, snapshot: JobSnapshot, position: WatchPosition) -> None:
        self.snapshot, self.position = snapshot, position
        await self._next()

    async def _take_event(self, event: StoredEvent, position: WatchPosition) -> None:
        self.events.append(event)
        self.position = position
        await self._next()

    async def _next(self) -> None:
        await _some_steps(self.dice)
        if self.dice.random() < 0.2:
            raise _Interrupted

    def check(self, history: list[StoredEvent]) -> None:
        assert self.snapshot is not None
        seen_at = self.snapshot.seq
        expected = [
            event for event in history if (self.output if isinstance(event, StoredOutput) else event.seq > seen_at)
        ]
        assert self.events == expected, "each event once, in commit order"
        runs = {run.node: run for run in self.snapshot.runs}
        runs.update((event.run.node, event.run) for event in self.events if isinstance(event, StoredRun))
        last = {event.run.node: event.run for event in history if isinstance(event, StoredRun)}
        assert runs == last, "snapshot and tail add up to the present"


async def _some_steps(dice: random.Random) -> None:
    for _ in range(dice.randint(0, 4)):
        await trio.lowlevel.checkpoint()


async def _live_job(store: MemoryStore, dice: random.Random) -> None:
    for count in range(dice.randint(0, 25)):
        await _some_steps(dice)
        run = dice.choice(RUNS)
        if dice.random() < 0.5:
            await store.write_run(replace(run, state=RunState.RUNNING, attempts=count))
        else:
            end = (await store.output_extent(run.id)).position
            await store.append_output(run, [_chunk(end, b"x" * dice.randint(1, 5))])
    await store.write_job(replace(JOB, state=JobState.COMPLETE, finished_at=9.0))


def _chunk(position: int, data: bytes) -> OutputChunk:
    return OutputChunk(stream=StreamName.STDOUT, position=position, stream_offset=position, read_at=1.0, data=data)


async def _tell_badly(commits: list[Committed], hub: CommitHub, dice: random.Random) -> None:
    """Word of another process's commits: late, out of order, some of it twice."""
    while True:
        await _some_steps(dice)
        if commits:
            told = commits.pop(dice.randrange(len(commits)))
            hub.committed(told)
            if dice.random() < 0.3:
                commits.append(told)


async def _watch_at_random(seed: int, *, badly_told: bool) -> None:
    dice, store, hub = random.Random(seed), MemoryStore(), CommitHub(max_watchers=100)
    commits: list[Committed] = []
    store.on_commit(commits.append if badly_told else hub.committed)
    await store.create_job(JOB, RUNS, None)
    watchers = [_Watcher(store, hub, dice, output=dice.random() < 0.7) for _ in range(4)]
    with trio.fail_after(20):
        async with trio.open_nursery() as telling:
            if badly_told:
                telling.start_soon(_tell_badly, commits, hub, dice)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_live_job, store, dice)
                for watcher in watchers:
                    await _some_steps(dice)
                    nursery.start_soon(watcher.run)
            telling.cancel_scope.cancel(reason="all watchers have seen the end")
    history = list(await store.read_events(JOB.id, after_seq=0, limit=10_000, include_output=True))
    for watcher in watchers:
        watcher.check(history)
    assert (hub._watchers.taken, hub._interest, hub._waiting, hub._last, hub._followed) == (0, {}, {}, {}, {}), (
        "no trace"
    )


@given(seed=st.integers(0, 2**32))
@settings(max_examples=120, deadline=None)
def test_snapshot_and_tail_are_exact_under_any_interleaving_and_resumed_at_any_token(seed: int) -> None:
    trio.run(partial(_watch_at_random, seed, badly_told=False))


@given(seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_the_same_when_word_of_commits_comes_late_twice_and_out_of_order(seed: int) -> None:
    trio.run(partial(_watch_at_random, seed, badly_told=True))


async def test_late_word_of_a_commit_does_not_hide_that_of_a_later_one() -> None:
    hub = CommitHub(max_watchers=1)
    with trio.fail_after(5), hub.watching(JOB.id, who="ops"):
        hub.committed(Committed(jobs={JOB.id: 5}, runs=frozenset()))
        mark = hub.mark(JOB.id)
        for seq in (7, 3):
            hub.committed(Committed(jobs={JOB.id: seq}, runs=frozenset()))
        assert await hub.wait(JOB.id, mark) == 7


async def test_a_late_report_committed_behind_the_end_is_still_delivered(autojump_clock: object) -> None:
    store, hub = MemoryStore(), CommitHub(max_watchers=1)
    await store.create_job(JOB, RUNS, None)
    await store.write_job(replace(JOB, state=JobState.COMPLETE, finished_at=9.0))
    await store.write_run(replace(RUNS[0], state=RunState.CRASHED, detail="late"))
    watcher = _Watcher(store, hub, random.Random(1), output=True)
    watcher.position = WatchPosition(changes=1, output=1)
    watcher.dice.random = lambda: 1.0  # type: ignore[method-assign]  # this watcher is never interrupted
    await watcher.run()
    kinds = [type(event) for event in watcher.events]
    assert kinds == [StoredRun, StoredRun, StoredJob, StoredRun]


async def test_watchers_beyond_the_bound_are_refused_and_room_comes_back(autojump_clock: object) -> None:
    async with open_fleet("n", script=Script(run_for=100), bounds=Bounds(watchers=2)) as fleet:
        job = await fleet.rig.start("n")

        async def watch() -> None:
            async def ignore(*_: object) -> None: ...

            await fleet.rig.jobs.watch(
                OPERATOR, job.id, position=None, include_output=False, snapshot=ignore, event=ignore
            )

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            nursery.start_soon(watch)
            await trio.sleep(1)
            with pytest.raises(Overloaded) as caught:
                await watch()
            assert caught.value.details["limit"] == "watchers"
            nursery.cancel_scope.cancel(reason="they have seen enough")
        with trio.fail_after(200):
            await watch()


async def test_one_caller_cannot_take_every_watchers_place(autojump_clock: object) -> None:
    bounds = Bounds(watchers=10, watchers_per_caller=2)
    async with open_fleet("n", script=Script(run_for=100), bounds=bounds) as fleet:
        job = await fleet.rig.start("n")

        async def watch(who: str) -> None:
            async def ignore(*_: object) -> None: ...

            set_origin(CallOrigin(method="/m", peer="192.0.2.7", principal=who, organization="default"))
            await fleet.rig.jobs.watch(
                OPERATOR, job.id, position=None, include_output=False, snapshot=ignore, event=ignore
            )

        async with trio.open_nursery() as nursery:
            for who in ("user/greedy", "user/greedy", "user/modest"):
                nursery.start_soon(watch, who)
            await trio.sleep(1)
            with pytest.raises(Overloaded) as caught:
                await watch("user/greedy")
            assert caught.value.details["limit"] == "watchers_per_caller"
            nursery.start_soon(watch, "user/modest")
            await trio.sleep(1)
            assert fleet.rig.services.hub._watchers.taken == 4
            nursery.cancel_scope.cancel(reason="they have seen enough")


async def test_a_slow_watcher_holds_nobody_up_and_misses_nothing(autojump_clock: object) -> None:
    output = tuple((StreamName.STDOUT, b"%03d\n" % number) for number in range(200))
    async with open_fleet("n", script=Script(output=output, run_for=1)) as fleet:
        job = await fleet.rig.start("n")
        read: list[bytes] = []

        async def slow(event: StoredEvent, _: WatchPosition) -> None:
            await trio.sleep(5)
            if isinstance(event, StoredOutput):
                read.append(event.chunk.data)

        async def ignore(*_: object) -> None: ...

        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                await fleet.rig.jobs.watch(
                    OPERATOR, job.id, position=None, include_output=True, snapshot=ignore, event=slow
                )

            nursery.start_soon(watch)
            ended = await fleet.rig.ended(job.id)
            assert ended.finished_at == pytest.approx(job.created_at + 1, abs=0.5)
        assert b"".join(read) == b"".join(data for _, data in output)


async def test_a_follower_has_the_agent_flush_often_while_it_reads(autojump_clock: object) -> None:
    async with open_fleet("n", script=Script(run_for=100)) as fleet:
        heard: list[bool] = []
        fleet.agents["n"].heard = lambda message: heard.extend(_followed(message))
        job = await fleet.rig.start("n")

        async def ignore(*_: object) -> None: ...

        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(_follow, fleet, job.id, "n", 0, ignore)
            await trio.sleep(1)
            assert fleet.rig.services.hub.is_followed(job.id, "n")
            assert not fleet.rig.services.hub.is_followed(job.id, "other")
            nursery.cancel_scope.cancel(reason="read enough")
        await trio.sleep(1)
        assert heard == [True, False]


def _followed(message: ToAgent) -> list[bool]:
    return [message.followed] if isinstance(message, SendFollow) else []


async def test_an_order_for_a_run_that_is_followed_says_so(autojump_clock: object) -> None:
    async with open_fleet("n", connected=False) as fleet:
        job = await fleet.rig.start("n")
        with fleet.rig.services.hub.following(job.id, None):
            fleet.agents["n"].connect()
            await fleet.rig.ended(job.id)
        run = await fleet.rig.run(job.id, "n")
        assert SendFollow(run_id=run.id, followed=True) in fleet.agents["n"].messages


# --- follow_output ----------------------------------------------------------------------------------------------


async def _follow(fleet: Fleet, job_id: str, node: str, offset: int, chunk: object, *, follow: bool = True) -> None:
    await follow_output(
        store=fleet.store,
        hub=fleet.rig.services.hub,
        who="",
        organization="default",
        job_id=job_id,
        node=node,
        stream=None,
        offset=offset,
        follow=follow,
        chunk=chunk,  # type: ignore[arg-type]  # any async callable
    )


@pytest.mark.parametrize("offset", range(12))
async def test_following_from_any_offset_gives_exactly_the_rest_and_ends_with_the_run(
    offset: int, autojump_clock: object
) -> None:
    async with open_fleet("n", script=Script(run_for=None)) as fleet:
        job = await fleet.rig.start("n", run_timeout=1000)
        run = await fleet.until(job.id, "n", RunState.RUNNING)
        agent = fleet.agents["n"]
        agent.write(run.id, StreamName.STDOUT, b"abc")
        read = bytearray()

        async def take(chunk: OutputChunk) -> None:
            assert chunk.position == offset + len(read)
            read.extend(chunk.data)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(_follow, fleet, job.id, "n", offset, take)
            for data in (b"def", b"ghi", b"jkl"):
                await trio.sleep(1)
                agent.write(run.id, StreamName.STDERR, data)
                if offset == 0:
                    await until(lambda data=data: read.endswith(data))  # type: ignore[misc]  # bound now
            await fleet.rig.jobs.cancel(OPERATOR, job.id, [])
        assert bytes(read) == b"abcdefghijkl"[offset:]


async def test_a_follower_reads_once_for_news_of_its_run_and_never_for_others(autojump_clock: object) -> None:
    store, hub = MemoryStore(), CommitHub(max_watchers=1)
    store.on_commit(hub.committed)
    await store.create_job(JOB, RUNS, None)
    reads: list[int] = []
    read_page = store.read_output_page

    async def counted(run_id: str, *, stream: StreamName | None, offset: int, limit: int) -> OutputPage:
        reads.append(offset)
        return await read_page(run_id, stream=stream, offset=offset, limit=limit)

    store.read_output_page = counted  # type: ignore[method-assign]  # to count

    async def ignore(_: OutputChunk) -> None: ...

    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            partial(
                follow_output,
                store=store,
                hub=hub,
                who="",
                organization="default",
                job_id=JOB.id,
                node="a",
                stream=None,
                offset=0,
                follow=True,
                chunk=ignore,
            )
        )
        await trio.testing.wait_all_tasks_blocked()
        for position in range(3):
            await store.append_output(RUNS[1], [_chunk(position, b"b")])
            await store.write_job(replace(JOB, detail=str(position)))
            await trio.testing.wait_all_tasks_blocked()
        await store.append_output(RUNS[0], [_chunk(0, b"a")])
        await trio.testing.wait_all_tasks_blocked()
        assert reads == [0, 0]
        await store.write_run(replace(RUNS[0], state=RunState.SUCCEEDED, finished_at=9.0))
    assert reads == [0, 0, 1]


async def test_an_offset_behind_the_end_of_a_finished_run_is_refused(autojump_clock: object) -> None:
    async with open_fleet("n", script=Script(output=((StreamName.STDOUT, b"abc"),))) as fleet:
        job = await fleet.rig.start("n")
        await fleet.rig.ended(job.id)

        async def take(chunk: OutputChunk) -> None:
            pytest.fail("there is nothing")

        await _follow(fleet, job.id, "n", 3, take)
        for offset in (4, -1):
            with pytest.raises(OffsetOutOfRange):
                await _follow(fleet, job.id, "n", offset, take)
        with pytest.raises(NotFound):
            await _follow(fleet, job.id, "nope", 0, take)


async def test_reading_without_following_ends_where_the_output_does(autojump_clock: object) -> None:
    async with open_fleet("n", script=Script(output=((StreamName.STDOUT, b"abc"),), run_for=None)) as fleet:
        job = await fleet.rig.start("n")
        run = await fleet.until(job.id, "n", RunState.RUNNING)
        live = fleet.rig.supervisor.run(run.id)
        assert live is not None
        await until(lambda: live.extent.position == 3)
        read: list[bytes] = []

        async def take(chunk: OutputChunk) -> None:
            read.append(chunk.data)

        await _follow(fleet, job.id, "n", 1, take, follow=False)
        assert read == [b"bc"]
