"""Sequence numbers: whoever moves them on gets every byte once, whoever does not gets all of it once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shovey_trio.core.errors import InvalidRequest
from shovey_trio.shovey.protocol.sequence import LOOK_AHEAD, PIECE, boundary, pieces, read_sequence


def given_bytes(data: bytes, sequence: int, *, complete: bool) -> tuple[bytes, int | None]:
    """As the shim cuts it."""
    wanted = pieces(sequence, size=len(data), complete=complete)
    begin, end = wanted.begin, wanted.end
    if 0 < begin < end:
        begin += boundary(data[begin : begin + LOOK_AHEAD])
    if begin < end < len(data):
        end += boundary(data[end : end + LOOK_AHEAD])
    return data[begin:end], wanted.last_seq


@given(st.text(alphabet="aé€😀", max_size=3_000).map(str.encode), st.data())
def test_client_that_moves_on_gets_every_byte_once_and_no_character_in_two(output: bytes, data: st.DataObject) -> None:
    sequence, received, size = 1, given_bytes(output, 0, complete=True)[0][:0], 0
    # What piece 0 holds is had from a complete stream only; the rest may be had while it grows.
    while size < len(output):
        size = data.draw(st.integers(size, len(output)))
        got, last = given_bytes(output[:size], sequence, complete=False)
        received += got
        got.decode()
        sequence = sequence if last is None else last + 1
        size += 500
    got, _ = given_bytes(output, sequence, complete=True)
    first = output.removesuffix(received + got)
    assert first + received + got == output
    assert len(first) <= PIECE + LOOK_AHEAD


@given(st.binary(max_size=5_000))
def test_client_that_stays_at_zero_gets_nothing_before_the_end_and_then_all(output: bytes) -> None:
    assert given_bytes(output, 0, complete=False) == (b"", None)
    assert given_bytes(output, 0, complete=True) == (output, max(0, (len(output) - 1) // PIECE))


@given(st.binary(max_size=5_000), st.integers(-3, 10))
def test_pieces_of_a_complete_stream_continue_one_another(output: bytes, sequence: int) -> None:
    whole = given_bytes(output, max(0, sequence), complete=True)[0]
    rest = given_bytes(output, max(0, sequence) + 1, complete=True)[0]
    assert whole.endswith(rest)


def test_number_behind_the_end_or_below_zero_has_no_last_number() -> None:
    assert given_bytes(b"hello\n", 1, complete=True) == (b"", None)
    assert given_bytes(b"hello\n", -1, complete=True) == (b"", None)


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("-1", -1), ("12", 12)])
def test_number_is_read(text: str, number: int) -> None:
    assert read_sequence(text) == number


@pytest.mark.parametrize("text", ["", "abc", "1.5", " 1", "+1", "--1", "²", "9" * 30])
def test_text_that_is_no_number_is_an_invalid_request(text: str) -> None:
    with pytest.raises(InvalidRequest):
        read_sequence(text)
