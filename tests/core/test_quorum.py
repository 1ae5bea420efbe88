"""Quorum forms."""

from __future__ import annotations

import math
from contextlib import suppress
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shovey_trio.core.errors import InvalidQuorum
from shovey_trio.core.jobs.quorum import required_nodes


@pytest.mark.parametrize(
    ("quorum", "total", "required"),
    [
        ("75%", 3, 3),
        ("75%", 4, 3),
        ("33.3%", 3, 1),
        ("100%", 7, 7),
        ("0%", 7, 0),
        ("0", 7, 0),
        (" 2 ", 7, 2),
        ("7", 7, 7),
    ],
)
def test_a_percentage_is_rounded_up_and_a_count_is_itself(quorum: str, total: int, required: int) -> None:
    assert required_nodes(quorum, total) == required


@pytest.mark.parametrize(
    "quorum", ["", "%", "-1", "1e3", "100.1%", "1.5", "75 %", "nan", "٣", "8", "½", "1\n2", "9" * 99]
)
def test_what_is_no_quorum_for_seven_nodes_is_refused(quorum: str) -> None:
    with pytest.raises(InvalidQuorum) as caught:
        required_nodes(quorum, 7)
    assert caught.value.details["quorum"] == quorum


def test_an_impossible_count_says_how_many_nodes_there_are() -> None:
    with pytest.raises(InvalidQuorum, match=r"the job targets 1 node$"):
        required_nodes("2", 1)


@given(hundredths=st.integers(0, 10_000), total=st.integers(0, 100_000))
def test_a_percentage_needs_exactly_its_share_and_never_more_than_all(hundredths: int, total: int) -> None:
    required = required_nodes(f"{hundredths / 100:.2f}%", total)
    assert required == math.ceil(Fraction(hundredths, 10_000) * total)
    assert 0 <= required <= total


@given(st.text(max_size=12), st.integers(0, 50))
def test_any_text_is_a_number_of_nodes_or_an_invalid_quorum(text: str, total: int) -> None:
    with suppress(InvalidQuorum):
        assert 0 <= required_nodes(text, total) <= total
