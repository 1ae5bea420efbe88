"""A machine that gives no thread: the work waits for one, and is done once."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from shovey_trio.observe.threads import run_in_thread


class Refusing:
    """Stands for a machine that refuses so many threads before it gives one."""

    def __init__(self, refusals: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = refusals
        self._give = trio.to_thread.run_sync
        monkeypatch.setattr(trio.to_thread, "run_sync", self)

    async def __call__(self, work: Any, **how: Any) -> Any:
        if self.left:
            self.left -= 1
            raise RuntimeError("can't start new thread")
        return await self._give(work, **how)


async def test_work_waits_for_a_thread_and_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Refusing(3, monkeypatch)
    done: list[int] = []
    with trio.fail_after(10):
        await run_in_thread(done.append, 1)
    assert (done, machine.left) == ([1], 0)


async def test_waiting_for_a_thread_can_be_cancelled(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    Refusing(1_000_000, monkeypatch)
    with trio.move_on_after(60) as scope:
        await run_in_thread(print, "never")
    assert scope.cancelled_caught


async def test_an_error_of_the_work_itself_is_not_taken_for_a_refusal() -> None:
    tried: list[int] = []

    def work() -> None:
        tried.append(1)
        raise RuntimeError("can't start new thread")

    with pytest.raises(RuntimeError), trio.fail_after(10):
        await run_in_thread(work)
    assert tried == [1]
