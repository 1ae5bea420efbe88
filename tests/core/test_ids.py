"""Identifiers."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shovey_trio.core.ids import is_uuid, job_id, run_id

moments = st.integers(0, 2**47).map(lambda millis: millis / 1000)
randomness = st.binary(min_size=10, max_size=10)


@given(moments, randomness)
def test_a_job_id_is_a_uuid_of_version_7_that_holds_its_millisecond(now: float, random_bytes: bytes) -> None:
    made = uuid.UUID(job_id(now, random_bytes))
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert made.int >> 80 == int(now * 1000)
    assert made.int & (2**62 - 1) == int.from_bytes(random_bytes, "big") & (2**62 - 1)


@given(moments, moments, randomness, randomness)
def test_job_ids_sort_by_time(first: float, second: float, one: bytes, other: bytes) -> None:
    if int(first * 1000) < int(second * 1000):
        assert job_id(first, one) < job_id(second, other)


def test_a_job_id_takes_ten_random_bytes() -> None:
    with pytest.raises(ValueError, match="10 random bytes"):
        job_id(0.0, b"short")


def test_both_sides_derive_the_same_run_id_and_no_two_nodes_share_one() -> None:
    job = job_id(1.0, b"0123456789")
    assert run_id(job, "web-1") == run_id(job, "web-1")
    assert len({run_id(job, f"web-{i}") for i in range(100)} | {run_id(job_id(2.0, b"0123456789"), "web-1")}) == 101


@given(st.text(max_size=40).filter(lambda text: len(text) != 36))
def test_any_text_may_be_asked_whether_it_is_an_id(text: str) -> None:
    assert not is_uuid(text)


@pytest.mark.parametrize("text", ["", "{01a3185c-5000-7224-aae6-b12288580d84}", "01A3185C-5000-7224-AAE6-B12288580D84"])
def test_an_id_has_one_spelling(text: str) -> None:
    assert not is_uuid(text)
    assert is_uuid(job_id(1.0, b"0123456789"))
