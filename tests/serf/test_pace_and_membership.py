"""Bookkeeping without I/O: how fast queries go, and what changes in the view."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from shovey_trio.core.serf.records import Member, MembersChanged
from shovey_trio.core.serf.wire import MemberEventKind, MemberStatus
from shovey_trio.serf.membership import ChangeKind, Membership
from shovey_trio.serf.pace import Pace, PaceLimits

_EVENT_STATUS = {
    MemberEventKind.JOIN: MemberStatus.ALIVE,
    MemberEventKind.LEAVE: MemberStatus.LEFT,
    MemberEventKind.FAILED: MemberStatus.FAILED,
    MemberEventKind.UPDATE: MemberStatus.ALIVE,
    MemberEventKind.REAP: MemberStatus.LEFT,
}


def _member(name: str, status: MemberStatus = MemberStatus.ALIVE, port: int = 1) -> Member:
    return Member(name=name, status=status, port=port)


def _event(kind: MemberEventKind, *names: str, port: int = 1) -> MembersChanged:
    return MembersChanged(seq=1, kind=kind, members=tuple(_member(n, _EVENT_STATUS[kind], port) for n in names))


def _kinds(changes: tuple[object, ...]) -> list[tuple[ChangeKind, str]]:
    return [(change.kind, change.member.name) for change in changes]  # type: ignore[attr-defined]  # MemberChange


def test_after_a_rest_ten_go_at_once_and_then_one_a_second() -> None:
    pace = Pace(PaceLimits(), now=0)
    sent: list[float] = []
    now = 0.0
    for _ in range(15):
        delay = pace.delay(now=now, outstanding=0, depth=0)
        assert delay is not None
        now += delay
        assert pace.delay(now=now, outstanding=0, depth=0) == 0
        pace.take()
        sent.append(now)
    assert sent == pytest.approx([0.0] * 10 + [1.0, 2.0, 3.0, 4.0, 5.0])


@pytest.mark.parametrize(
    ("outstanding", "depth", "delay"),
    [(0, 64, 1.0), (0, 65, 2.0), (0, 256, 2.0), (0, 257, None), (9, 0, 1.0), (10, 0, None)],
)
def test_the_rate_follows_the_agents_queue_and_what_is_outstanding(
    outstanding: int, depth: int, delay: float | None
) -> None:
    pace = Pace(PaceLimits(burst=1), now=0)
    pace.take()
    assert pace.delay(now=0, outstanding=outstanding, depth=depth) == delay


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(0, 300)), max_size=80))
def test_no_more_than_the_burst_and_the_rate_ever_go(steps: list[tuple[float, int]]) -> None:
    pace, now, sent = Pace(PaceLimits(), now=0), 0.0, 0
    for wait, depth in steps:
        now += wait
        while pace.delay(now=now, outstanding=0, depth=depth) == 0:
            pace.take()
            sent += 1
        assert sent <= 10 + now + 1e-6


def test_a_repeated_event_is_no_change() -> None:
    view = Membership()
    view.apply_snapshot([_member("a"), _member("b")])
    assert _kinds(view.apply_event(_event(MemberEventKind.UPDATE, "a", port=2))) == [(ChangeKind.UPDATED, "a")]
    for kind in (MemberEventKind.UPDATE, MemberEventKind.JOIN):
        assert view.apply_event(_event(kind, "a", port=2)) == ()
    assert view.apply_snapshot([_member("a", port=2), _member("b")]) == ()


def test_events_change_the_view_and_a_reaped_member_is_gone() -> None:
    view = Membership()
    assert _kinds(view.apply_event(_event(MemberEventKind.JOIN, "a", "b", "c"))) == [
        (ChangeKind.JOINED, "a"),
        (ChangeKind.JOINED, "b"),
        (ChangeKind.JOINED, "c"),
    ]
    assert _kinds(view.apply_event(_event(MemberEventKind.FAILED, "a"))) == [(ChangeKind.FAILED, "a")]
    assert _kinds(view.apply_event(_event(MemberEventKind.LEAVE, "b"))) == [(ChangeKind.LEFT, "b")]
    assert [view.is_alive(name) for name in "abcx"] == [False, False, True, False]
    assert view.alive_count == 1
    assert _kinds(view.apply_event(_event(MemberEventKind.REAP, "a", "x"))) == [(ChangeKind.REAPED, "a")]
    assert _kinds(view.apply_event(_event(MemberEventKind.JOIN, "b"))) == [(ChangeKind.JOINED, "b")]
    assert sorted(view.members) == ["b", "c"]
    assert view.alive_count == 2


@given(
    st.lists(
        st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.sampled_from(MemberStatus), st.integers(0, 1))),
        min_size=1,
        max_size=6,
    )
)
def test_a_snapshot_makes_the_view_equal_to_it_and_tells_each_difference_once(
    snapshots: list[dict[str, tuple[MemberStatus, int]]],
) -> None:
    view = Membership()
    told: dict[str, Member] = {}
    for snapshot in snapshots:
        members = {name: _member(name, *value) for name, value in snapshot.items()}
        changes = view.apply_snapshot(members.values())
        assert len({change.member.name for change in changes}) == len(changes)
        for change in changes:
            if change.kind is ChangeKind.REAPED:
                del told[change.member.name]
            else:
                told[change.member.name] = change.member
        assert told == members == dict(view.members)
        assert view.alive_count == sum(m.status is MemberStatus.ALIVE for m in members.values())
        assert view.apply_snapshot(members.values()) == ()


async def test_a_slow_reader_of_changes_gets_the_latest_of_each_member() -> None:
    view = Membership()
    with view.feed() as feed:
        for _ in range(1_000):
            view.apply_event(_event(MemberEventKind.FAILED, "a", "b"))
            view.apply_event(_event(MemberEventKind.JOIN, "a"))
        with trio.fail_after(10):
            assert _kinds(await feed.next_batch()) == [(ChangeKind.FAILED, "b"), (ChangeKind.JOINED, "a")]
        view.apply_event(_event(MemberEventKind.REAP, "a"))
        with trio.fail_after(10):
            assert _kinds(await feed.next_batch()) == [(ChangeKind.REAPED, "a")]


async def test_waiting_for_a_state_ends_when_it_is_reached(nursery: trio.Nursery, autojump_clock: object) -> None:
    view = Membership()
    reached = trio.Event()

    async def wait() -> None:
        await view.wait_until(lambda now: now.is_alive("a") and now.is_alive("b"))
        reached.set()

    nursery.start_soon(wait)
    view.apply_event(_event(MemberEventKind.JOIN, "a"))
    await trio.testing.wait_all_tasks_blocked()
    assert not reached.is_set()
    view.apply_event(_event(MemberEventKind.JOIN, "b"))
    with trio.fail_after(10):
        await reached.wait()
