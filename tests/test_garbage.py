"""Full collections wait for an idle loop, and come when it is."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from shovey_trio.garbage import collect_when_idle, settle_memory


class Knot:
    """Refers to itself, so that only a collection frees it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


def old_garbage() -> weakref.ref[Knot]:
    """Garbage that lived long, when a full collection is due."""
    knot = Knot()
    found = weakref.ref(knot)
    for _ in range(30):
        gc.collect(1)
    del knot
    gc.collect(1)
    assert found() is not None
    return found


async def test_old_garbage_is_collected_once_the_loop_is_idle(autojump_clock: trio.testing.MockClock) -> None:
    settle_memory()
    found = old_garbage()
    with trio.move_on_after(60):
        await collect_when_idle()
    assert found() is None


async def test_nothing_is_collected_while_other_tasks_are_ready_to_run(mock_clock: trio.testing.MockClock) -> None:
    settle_memory()
    found = old_garbage()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect_when_idle)
        nursery.start_soon(_spin)
        for _ in range(20):
            await _turns(5)
            mock_clock.jump(1.0)
        await _turns(5)
        nursery.cancel_scope.cancel(reason="it had its chances")
    assert found() is not None


def test_what_was_there_at_the_start_is_not_looked_at_again() -> None:
    gc.unfreeze()
    settle_memory()
    assert gc.get_freeze_count() > 1000


async def _spin() -> None:
    while True:  # noqa: ASYNC110 - keeping the loop busy is what it is for
        await trio.lowlevel.checkpoint()


async def _turns(count: int) -> None:
    for _ in range(count):
        await trio.lowlevel.checkpoint()
