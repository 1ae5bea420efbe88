"""Page sizes and tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shovey_trio.core.errors import InvalidRequest, InvalidToken
from shovey_trio.nursery.watch import WatchPosition
from shovey_trio.rpc.services.paging import decode_name, decode_resume, encode_name, encode_resume, page_size

JOB, OTHER = "01a3185c-5000-7224-aae6-b12288580d84", "01a3185c-5000-7224-aae6-b12288580d85"
sequences = st.integers(0, 2**63 - 1)


@pytest.mark.parametrize(("asked", "given_"), [(0, 100), (1, 1), (1000, 1000), (1001, 1000), (2**31 - 1, 1000)])
def test_a_page_is_a_hundred_entries_unless_asked_and_a_thousand_at_most(asked: int, given_: int) -> None:
    assert page_size(asked) == given_


def test_a_negative_page_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        page_size(-1)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=50))
def test_a_name_comes_back_from_its_token(name: str) -> None:
    assert decode_name(encode_name(name)) == name


@given(sequences, sequences)
def test_a_position_comes_back_from_its_token(changes: int, output: int) -> None:
    position = WatchPosition(changes=changes, output=output)
    assert decode_resume(encode_resume(JOB, position), JOB) == position


def test_no_token_is_no_position() -> None:
    assert decode_resume("", JOB) is None


@pytest.mark.parametrize(
    "token",
    [
        "x",
        f"{JOB}:1",
        f"{JOB}:1:g",
        f"{JOB}:1:2:3",
        f"{JOB}:-1:2",
        f"{JOB}:{'f' * 17}:1",
        f"{OTHER}:1:2",
        f"{JOB}:1:2\n",
    ],
)
def test_a_token_that_is_not_of_this_job_is_refused(token: str) -> None:
    with pytest.raises(InvalidToken):
        decode_resume(token, JOB)


@given(st.text(max_size=80))
def test_any_text_as_a_token_is_a_value_or_an_invalid_token(text: str) -> None:
    for decode in (decode_name, lambda token: decode_resume(token, JOB)):
        try:
            decode(text)
        except InvalidToken:
            continue


@given(st.integers(2**63, 2**64 - 1))
def test_a_sequence_that_no_store_can_hold_is_refused(huge: int) -> None:
    with pytest.raises(InvalidToken):
        decode_resume(f"{JOB}:{huge:x}:0", JOB)
