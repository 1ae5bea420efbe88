"""The bound on renewals."""

from __future__ import annotations

import pytest

from shovey_trio.core.errors import Overloaded
from shovey_trio.rpc.services.call_rate import CallRate


class _Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time


def _let_through(rate: CallRate, calls: int, who: str = "") -> int:
    passed = 0
    for number in range(calls):
        try:
            rate.take(who or f"node/{number}")
        except Overloaded:
            continue
        passed += 1
    return passed


def test_a_minutes_calls_may_come_at_once_and_no_more() -> None:
    clock = _Clock()
    rate = CallRate(6, clock)
    assert _let_through(rate, 20) == 6
    with pytest.raises(Overloaded) as caught:
        rate.take("node/late")
    assert caught.value.details == {"limit": "enroll_per_minute", "retry_after_s": "10"}


def test_places_come_back_evenly_and_never_more_than_a_minutes() -> None:
    clock = _Clock()
    rate = CallRate(6, clock)
    _let_through(rate, 6)
    clock.time += 20
    assert _let_through(rate, 20) == 2
    clock.time += 3600
    assert _let_through(rate, 20) == 6


def test_a_clock_that_is_set_back_takes_nothing_away() -> None:
    clock = _Clock()
    rate = CallRate(6, clock)
    _let_through(rate, 5)
    clock.time -= 500
    assert _let_through(rate, 20) == 1
    clock.time += 10
    assert _let_through(rate, 20) == 1


def test_one_node_has_a_tenth_of_them_and_keeps_no_other_out() -> None:
    rate = CallRate(60, _Clock())
    assert _let_through(rate, 100, "node/greedy") == 6
    assert _let_through(rate, 20) == 20
