"""A main loop that stood still is told of in the log, with how long."""

from __future__ import annotations

import time

import pytest
import structlog
import trio

from shovey_trio.observe.loop_watch import STALL_VARIABLE, stall_threshold, watch_loop


async def test_a_step_that_keeps_the_loop_is_logged_with_its_length() -> None:
    with structlog.testing.capture_logs() as logged, trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch_loop, 0.1)
            while not logged:
                await trio.lowlevel.checkpoint()  # so that the watch is asleep when the loop is kept
                time.sleep(0.2)  # noqa: ASYNC251 - the very thing
            nursery.cancel_scope.cancel(reason="it was seen")
    assert logged[0]["event"] == "loop.stalled"
    # At least the threshold; no longer than what a busy machine may add to 0.2 s.
    assert 0.1 <= logged[0]["seconds"] < 10


async def test_a_loop_that_is_only_busy_with_short_steps_is_not_reported(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with structlog.testing.capture_logs() as logged, trio.move_on_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch_loop, 0.1)
            nursery.start_soon(_short_steps)
    assert logged == []


async def _short_steps() -> None:
    while True:  # noqa: ASYNC110 - short steps are what it is for
        await trio.sleep(0.01)


@pytest.mark.parametrize(
    ("value", "threshold"), [("0.02", 0.02), ("", 0.25), ("often", 0.25), ("0", 0.25), ("-1", 0.25)]
)
def test_the_threshold_is_the_environments_if_that_is_a_positive_number(value: str, threshold: float) -> None:
    assert stall_threshold({STALL_VARIABLE: value}) == threshold


def test_without_a_word_in_the_environment_a_quarter_of_a_second_is_a_stall() -> None:
    assert stall_threshold({}) == 0.25
