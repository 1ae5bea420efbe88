"""The group writer against a commit that the test holds and lets go."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import outcome
import pytest
import trio
import trio.testing

from shovey_trio.core.errors import NotFound, StoreCorrupt, StoreUnavailable
from shovey_trio.store.contract import Committed
from shovey_trio.store.sql.committer import CommittedGroup, Work
from shovey_trio.store.sql.health import StoreHealth
from shovey_trio.store.sql.news import OwnNews
from shovey_trio.store.sql.writer import ADMITTED_COST, BULK_COST, BULK_GROUP_COST, GROUP_COST, WAKE_SLICE, GroupWriter

NOTHING = Committed(jobs={}, runs=frozenset())


class HeldCommit:
    """Stands for the database: applies nothing, remembers the groups, waits to be let go."""

    def __init__(self) -> None:
        self.groups: list[list[Any]] = []
        self.failures: list[Exception] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def __call__(self, works: Sequence[Work]) -> CommittedGroup:
        self.entered.set()
        assert self.gate.wait(30)
        values: list[Any] = [work(None) for work in works]  # type: ignore[arg-type]  # these works need no transaction
        self.groups.append(values)
        if self.failures:
            raise self.failures.pop(0)
        outcomes = [outcome.Error(value) if isinstance(value, Exception) else outcome.Value(value) for value in values]
        return CommittedGroup(outcomes=outcomes, committed=NOTHING)

    @property
    def order(self) -> list[Any]:
        return [value for group in self.groups for value in group]


def value(name: Any) -> Callable[[object], Any]:
    return lambda _: name


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked()


@pytest.fixture
def commit() -> HeldCommit:
    return HeldCommit()


async def test_idle_writer_commits_a_write_alone_and_at_once(commit: HeldCommit) -> None:
    writer = GroupWriter(commit, StoreHealth())
    assert await writer.submit(value("a")) == "a"
    assert await writer.submit(value("b")) == "b"
    assert commit.groups == [["a"], ["b"]]


async def test_what_arrives_during_a_commit_becomes_the_next_group_in_order(commit: HeldCommit) -> None:
    writer = GroupWriter(commit, StoreHealth())
    commit.gate.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.submit, value("first"))
        await settle()
        for number in range(10):
            nursery.start_soon(writer.submit, value(number))
            await settle()
            writer.submit_nowait(value(f"soon-{number}"))
        commit.gate.set()
    await writer.aclose()
    expected = [name for number in range(10) for name in (number, f"soon-{number}")]
    assert commit.groups == [["first"], expected]


async def test_group_is_bounded_by_payload_and_a_larger_write_goes_alone(commit: HeldCommit) -> None:
    writer = GroupWriter(commit, StoreHealth())
    commit.gate.clear()
    writer.submit_nowait(value("first"))
    writer.submit_nowait(value("small"))
    writer.submit_nowait(value("large"), payload=GROUP_COST * 2)
    writer.submit_nowait(value("half"), payload=GROUP_COST // 2)
    writer.submit_nowait(value("more"), payload=GROUP_COST // 2)
    commit.gate.set()
    await writer.aclose()
    assert commit.groups == [["first"], ["small"], ["large"], ["half"], ["more"]]


async def test_order_holds_past_the_bound_of_admitted_writes(commit: HeldCommit) -> None:
    writer = GroupWriter(commit, StoreHealth())
    commit.gate.clear()
    names = list(range(3 * ADMITTED_COST // GROUP_COST))
    for name in names:
        writer.submit_nowait(value(name), payload=GROUP_COST)
    commit.gate.set()
    await writer.aclose()
    assert commit.order == names


async def test_bulk_is_overtaken_and_still_part_of_every_commit(commit: HeldCommit) -> None:
    writer = GroupWriter(commit, StoreHealth())
    commit.gate.clear()
    async with trio.open_nursery() as nursery:

        async def write(name: str, *, bulk: bool, payload: int = GROUP_COST) -> None:
            await writer.submit(value(name), payload=payload, bulk=bulk)

        writer.submit_nowait(value("running"))
        # More bulk than is admitted: what is not bulk must not queue behind it anywhere.
        for number in range(BULK_COST // GROUP_COST + 2):
            nursery.start_soon(partial(write, f"bulk-{number}", bulk=True))
            await settle()
        for name in ("a", "b"):
            nursery.start_soon(partial(write, name, bulk=False))
            await settle()
        nursery.start_soon(partial(write, "small", bulk=False, payload=0))
        await settle()
        commit.gate.set()
    await writer.aclose()
    assert commit.groups[:4] == [["running"], ["a", "bulk-0"], ["b", "bulk-1"], ["small", "bulk-2"]]
    assert [name for name in commit.order if str(name).startswith("bulk")] == [f"bulk-{n}" for n in range(5)]


async def test_a_commit_takes_so_little_bulk_that_the_next_one_is_not_far(commit: HeldCommit) -> None:
    writer = GroupWriter(commit, StoreHealth())
    commit.gate.clear()
    async with trio.open_nursery() as nursery:
        writer.submit_nowait(value("running"))
        for number in range(5):
            bulk = partial(writer.submit, value(f"bulk-{number}"), payload=BULK_GROUP_COST // 3, bulk=True)
            nursery.start_soon(bulk)
            await settle()
        writer.submit_nowait(value("state"), payload=BULK_GROUP_COST)
        commit.gate.set()
    await writer.aclose()
    assert commit.groups == [["running"], ["state", "bulk-0", "bulk-1"], ["bulk-2", "bulk-3"], ["bulk-4"]]


async def test_callers_of_one_commit_are_woken_in_slices_with_others_in_between(commit: HeldCommit) -> None:
    writer = GroupWriter(commit, StoreHealth())
    commit.gate.clear()
    writer.submit_nowait(value("running"))
    calls = 3 * WAKE_SLICE
    woken = 0
    seen: set[int] = set()

    async def write(name: int) -> None:
        nonlocal woken
        assert await writer.submit(value(name)) == name
        woken += 1

    async with trio.open_nursery() as nursery:
        for number in range(calls):
            nursery.start_soon(write, number)
        await settle()
        commit.gate.set()
        while woken < calls:
            seen.add(woken)
            await trio.lowlevel.checkpoint()
    assert len(commit.groups) == 2
    assert len(seen - {0}) >= 2, "somebody else had a turn between two slices"


async def test_closing_answers_callers_that_were_not_woken_yet(commit: HeldCommit) -> None:
    writer = GroupWriter(commit, StoreHealth())
    answers: list[Any] = []

    async def write(name: int) -> None:
        answers.append(await writer.submit(value(name)))

    async with trio.open_nursery() as nursery:
        for number in range(3 * WAKE_SLICE):
            nursery.start_soon(write, number)
        while not answers:
            await trio.lowlevel.checkpoint()
        await writer.aclose()
    assert sorted(answers) == list(range(3 * WAKE_SLICE))


async def test_cancelled_caller_takes_its_write_along_only_from_behind_the_bound(commit: HeldCommit) -> None:
    writer = GroupWriter(commit, StoreHealth())
    commit.gate.clear()
    async with trio.open_nursery() as nursery:
        writer.submit_nowait(value("running"))

        async def cancelled_later(name: str, payload: int, scope: trio.CancelScope) -> None:
            with scope:
                await writer.submit(value(name), payload=payload)

        admitted, behind = trio.CancelScope(), trio.CancelScope()
        nursery.start_soon(cancelled_later, "admitted", ADMITTED_COST, admitted)
        await settle()
        nursery.start_soon(cancelled_later, "behind", 0, behind)
        await settle()
        admitted.cancel(reason="test")
        behind.cancel(reason="test")
        await settle()
        assert admitted.cancelled_caught
        assert behind.cancelled_caught
        commit.gate.set()
    await writer.aclose()
    assert commit.order == ["running", "admitted"]


async def test_own_error_of_a_write_reaches_its_caller_alone(commit: HeldCommit) -> None:
    health = StoreHealth()
    writer = GroupWriter(commit, health)
    with pytest.raises(NotFound):
        await writer.submit(value(NotFound("no such run")))
    assert await writer.submit(value("fine")) == "fine"
    assert health.failure == ""


async def test_failed_commit_fails_its_whole_group_and_the_next_one_heals(commit: HeldCommit) -> None:
    health = StoreHealth()
    writer = GroupWriter(commit, health)
    errors: list[StoreUnavailable] = []

    async def submit() -> None:
        with pytest.raises(StoreUnavailable, match="disk full") as caught:
            await writer.submit(value("x"))
        errors.append(caught.value)

    commit.failures = [StoreUnavailable("disk full"), StoreUnavailable("disk full")]
    commit.gate.clear()
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(submit)
        await settle()
        commit.gate.set()
    assert len({id(error) for error in errors}) == 5
    assert health.failure == "disk full"
    await writer.submit(value("y"))
    assert health.failure == ""


async def test_write_nobody_waits_for_survives_a_failed_commit_in_its_place(commit: HeldCommit) -> None:
    writer = GroupWriter(commit, StoreHealth())
    commit.failures = [StoreUnavailable("disk full")]
    commit.gate.clear()
    writer.submit_nowait(value("soon-1"))
    writer.submit_nowait(value("soon-2"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.submit, value("waited"))
        await settle()
        commit.gate.set()
    await writer.aclose()
    assert commit.groups == [["soon-1"], ["soon-1", "soon-2", "waited"]]


async def test_kept_write_is_tried_once_more_at_close(commit: HeldCommit) -> None:
    writer = GroupWriter(commit, StoreHealth())
    commit.failures = [StoreUnavailable("disk full"), StoreUnavailable("disk full")]
    writer.submit_nowait(value("soon"))
    with pytest.raises(StoreUnavailable):
        await writer.submit(value("waited"))
    await writer.aclose()
    assert commit.order[-1] == "soon"


async def test_damage_fails_everything_that_waits_and_all_that_comes(commit: HeldCommit) -> None:
    writer = GroupWriter(commit, StoreHealth())
    commit.failures = [StoreCorrupt("damaged")]
    commit.gate.clear()
    failed = []

    async def submit(payload: int) -> None:
        with pytest.raises(StoreCorrupt):
            await writer.submit(value("x"), payload=payload)
        failed.append(payload)

    async with trio.open_nursery() as nursery:
        for payload in (0, GROUP_COST, ADMITTED_COST, 7):
            nursery.start_soon(submit, payload)
        await settle()
        commit.gate.set()
    assert len(failed) == 4
    assert len(commit.groups) == 1
    with pytest.raises(StoreCorrupt):
        await writer.submit(value("later"))


async def test_close_finishes_what_waits_and_refuses_what_comes(commit: HeldCommit) -> None:
    writer = GroupWriter(commit, StoreHealth())
    commit.gate.clear()
    async with trio.open_nursery() as nursery:
        for name in "abc":
            nursery.start_soon(writer.submit, value(name))
        await settle()
        nursery.start_soon(writer.aclose)
        await settle()
        with pytest.raises(StoreUnavailable, match="closing"):
            await writer.submit(value("late"))
        with pytest.raises(StoreUnavailable, match="closing"):
            writer.submit_nowait(value("late"))
        commit.gate.set()
    assert sorted(commit.order) == ["a", "b", "c"]


async def test_close_fails_what_a_stuck_commit_keeps_waiting(
    commit: HeldCommit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shovey_trio.store.sql.writer.CLOSE_GRACE", 0.05)
    writer = GroupWriter(commit, StoreHealth())
    commit.gate.clear()
    ended = []

    async def submit(name: str) -> None:
        with pytest.raises(StoreUnavailable, match="closed"):
            await writer.submit(value(name))
        ended.append(name)

    async with trio.open_nursery() as nursery:
        for name in "abc":
            nursery.start_soon(submit, name)
        await settle()
        with trio.fail_after(30):
            await writer.aclose()
    assert sorted(ended) == ["a", "b", "c"]
    commit.gate.set()


async def test_listener_that_raises_harms_neither_the_writer_nor_other_listeners() -> None:
    committed = Committed(jobs={"job": 1}, runs=frozenset())
    news = OwnNews()
    writer = GroupWriter(
        lambda works: CommittedGroup(outcomes=[outcome.Value(None)] * len(works), committed=committed),
        StoreHealth(),
        news.committed,
    )
    heard: list[Committed] = []

    def broken(_: Committed) -> None:
        raise RuntimeError("a listener's bug")

    news.on_commit(broken)
    news.on_commit(heard.append)
    await writer.submit(value(None))
    assert heard == [committed]


async def test_a_writer_without_a_thread_refuses_keeps_what_nobody_waits_for_and_goes_on(
    commit: HeldCommit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    health = StoreHealth()
    writer = GroupWriter(commit, health)
    with monkeypatch.context() as machine:
        machine.setattr(trio.lowlevel, "start_thread_soon", refuse)
        writer.submit_nowait(value("kept"))
        await settle()
        with pytest.raises(StoreUnavailable, match="no thread"):
            await writer.submit(value("refused"))
        assert "no thread" in health.failure
    assert await writer.submit(value("taken")) == "taken"
    assert (commit.order, health.failure) == (["kept", "taken"], "")
