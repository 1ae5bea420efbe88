"""Shares of what callers can take and keep."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shovey_trio.core.errors import Overloaded
from shovey_trio.core.shares import Shares


def test_one_caller_cannot_take_every_place() -> None:
    shares = Shares("watchers", total=10, each=3)
    for _ in range(3):
        shares.take("viewer/v")
    with pytest.raises(Overloaded) as caught:
        shares.take("viewer/v")
    assert caught.value.details == {"limit": "watchers_per_caller", "retry_after_s": "5"}
    with shares.place("viewer/w"):
        assert shares.taken == 4


def test_all_callers_together_have_the_bound_for_all() -> None:
    shares = Shares("watchers", total=2, each=3)
    shares.take("a")
    give_back = shares.take("b")
    with pytest.raises(Overloaded) as caught:
        shares.take("c")
    assert caught.value.details["limit"] == "watchers"
    give_back()
    shares.take("c")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=60))
def test_whatever_is_taken_and_given_back_the_bounds_hold_and_no_trace_stays(steps: list[tuple[str, bool]]) -> None:
    shares = Shares("calls", total=4, each=2)
    held: list[tuple[str, object]] = []
    for who, takes in steps:
        if takes:
            mine = sum(name == who for name, _ in held)
            if mine < 2 and len(held) < 4:
                held.append((who, shares.take(who)))
            else:
                with pytest.raises(Overloaded):
                    shares.take(who)
        elif held:
            held.pop()[1]()  # type: ignore[operator]
    assert shares.taken == len(held)
    for _, give_back in held:
        give_back()  # type: ignore[operator]
    assert (shares.taken, dict(shares._taken)) == (0, {})
