"""Garbage is looked for while that is short and nobody waits, and otherwise only when it had to wait for long."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from shovey_trio.controller.garbage import collect_garbage, settle_memory

_DAY = 24 * 3600.0
# Enough for a search to be due.
_SOME = 60_000


class Knot:
    """Refers to itself, so that only a search frees it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    settle_memory()
    yield
    gc.enable()
    gc.unfreeze()


def drop(count: int) -> weakref.ref[Knot]:
    """Makes garbage; what is returned tells whether it was found."""
    found = [weakref.ref(Knot()) for _ in range(count)]
    return found[0]


async def test_garbage_is_found_in_an_idle_moment(autojump_clock: trio.testing.MockClock) -> None:
    found = drop(_SOME)
    with trio.move_on_after(5):
        await collect_garbage(_none, _none)
    assert found() is None


async def test_python_itself_looks_for_none() -> None:
    found = drop(10 * _SOME)
    assert found() is not None
    assert not gc.isenabled()


async def test_nothing_is_looked_for_while_other_tasks_are_ready_to_run(mock_clock: trio.testing.MockClock) -> None:
    found = drop(_SOME)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect_garbage, _none, _none)
        nursery.start_soon(_spin)
        for _ in range(40):
            await _turns(5)
            mock_clock.jump(1.0)
        await _turns(5)
        nursery.cancel_scope.cancel(reason="it had its chances")
    assert found() is not None


async def test_nothing_is_looked_for_while_many_runs_are_live(autojump_clock: trio.testing.MockClock) -> None:
    found = drop(_SOME)
    live = 1_000
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect_garbage, _none, lambda: live)
        await trio.sleep(60)
        assert found() is not None
        live = 3
        await trio.sleep(5)
        assert found() is None
        nursery.cancel_scope.cancel(reason="all is seen")


async def test_garbage_is_found_in_the_end_however_many_runs_are_live(
    autojump_clock: trio.testing.MockClock,
) -> None:
    found = drop(_SOME)
    with trio.move_on_after(180):
        await collect_garbage(_none, lambda: 1_000)
    assert found() is None


async def test_what_agents_need_is_looked_at_as_they_come(autojump_clock: trio.testing.MockClock) -> None:
    attached = 0
    found = weakref.ref(Knot())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect_garbage, lambda: attached, _none)
        await trio.sleep(5)
        assert found() is not None
        attached = 500
        await trio.sleep(1)
        assert found() is None
        attached = 0
        found = weakref.ref(Knot())
        await trio.sleep(1)
        attached = 50
        await trio.sleep(1)
        assert found() is not None
        nursery.cancel_scope.cancel(reason="all is seen")


async def test_what_was_in_use_when_it_was_looked_at_is_looked_at_again_a_day_later(
    mock_clock: trio.testing.MockClock,
) -> None:
    knot = Knot()
    found = weakref.ref(knot)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect_garbage, _none, _none)
        await _pass(mock_clock, drop(_SOME))
        del knot
        await _pass(mock_clock, drop(_SOME))
        assert found() is not None
        mock_clock.jump(_DAY)
        await _pass(mock_clock, found)
        nursery.cancel_scope.cancel(reason="all is seen")


def test_what_was_there_at_the_start_is_not_looked_at_again() -> None:
    gc.unfreeze()
    settle_memory()
    assert gc.get_freeze_count() > 1000


def _none() -> int:
    return 0


async def _spin() -> None:
    while True:  # noqa: ASYNC110 - keeping the loop busy is what it is for
        await trio.lowlevel.checkpoint()


async def _turns(count: int) -> None:
    for _ in range(count):
        await trio.lowlevel.checkpoint()


async def _pass(clock: trio.testing.MockClock, found: weakref.ref[Knot]) -> None:
    """Lets time pass in which nothing happens, until the garbage was found."""
    for _ in range(60):
        await trio.testing.wait_all_tasks_blocked(0.1)
        clock.jump(0.3)
        if found() is None:
            return
    raise AssertionError("the garbage was not found")
