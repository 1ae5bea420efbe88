from __future__ import annotations

import hashlib
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shovey_trio.core.errors import InvalidEnrollmentToken, InvalidRequest
from shovey_trio.core.trust.enrollment import (
    JoinTicket,
    decode_join,
    encode_join,
    encode_token,
    same_digest,
    token_digest,
)

TICKETS = st.builds(
    JoinTicket,
    organization=st.text(min_size=1, max_size=64),
    node=st.text(min_size=1, max_size=128),
    enroll_address=st.text(min_size=1, max_size=64),
    ca_certificate=st.binary(min_size=1, max_size=600),
    secret=st.binary(min_size=32, max_size=32),
)
TICKET = JoinTicket(
    organization="acme",
    node="web-1",
    enroll_address="ctl.example.com:7444",
    ca_certificate=bytes(range(256)),
    secret=bytes(range(32)),
)


@given(TICKETS)
def test_every_ticket_survives_its_join_string(ticket: JoinTicket) -> None:
    assert decode_join(encode_join(ticket)) == ticket


def test_a_join_string_is_one_word_that_no_shell_changes() -> None:
    assert set(encode_join(TICKET)) <= set(string.ascii_letters + string.digits + "-_.")


def test_line_breaks_of_a_mail_or_a_terminal_do_no_harm() -> None:
    text = encode_join(TICKET)
    assert decode_join(f"  {text[:70]}\r\n{text[70:]}\n") == TICKET


@given(st.integers(min_value=1, max_value=200))
def test_a_join_string_that_was_cut_says_so(cut: int) -> None:
    with pytest.raises(InvalidRequest):
        decode_join(encode_join(TICKET)[:-cut])


@given(st.data())
def test_a_changed_character_is_noticed(data: st.DataObject) -> None:
    text = encode_join(TICKET)
    at = data.draw(st.integers(min_value=len("shovey-join-1."), max_value=len(text) - 2))
    other = data.draw(st.sampled_from(string.ascii_letters).filter(lambda char: char != text[at]))
    with pytest.raises(InvalidRequest):
        decode_join(text[:at] + other + text[at + 1 :])


@given(
    st.text(max_size=200) | st.text(alphabet=string.ascii_letters + "-_", max_size=200).map("shovey-join-1.".__add__)
)
def test_garbage_is_an_invalid_request(text: str) -> None:
    with pytest.raises(InvalidRequest):
        decode_join(text)


def test_a_later_version_is_told_from_garbage() -> None:
    with pytest.raises(InvalidRequest, match="another version"):
        decode_join(encode_join(TICKET).replace("join-1", "join-2"))


def test_an_error_never_shows_the_join_string() -> None:
    text = encode_join(TICKET)[:-3]
    with pytest.raises(InvalidRequest) as caught:
        decode_join(text)
    assert text[20:40] not in str(caught.value)


def test_a_ticket_does_not_show_its_secret() -> None:
    assert "secret" not in repr(TICKET)
    assert TICKET.token not in repr(TICKET)


@given(st.binary(min_size=32, max_size=32))
def test_the_digest_is_of_the_random_bytes(secret: bytes) -> None:
    assert token_digest(encode_token(secret)) == hashlib.sha256(secret).digest()


@pytest.mark.parametrize(
    "token",
    [
        "",
        "A" * 42,
        "A" * 44,
        "A" * 43 + "=",
        "A" * 42 + "B",  # decodes to the same bytes as 43 times A
        "!" * 43,
        "A" * 42 + "\n",
        "é" * 43,
        "A" * 100_000,
    ],
)
def test_what_is_no_token_is_refused_as_any_other_bad_one(token: str) -> None:
    with pytest.raises(InvalidEnrollmentToken):
        token_digest(token)


def test_digests_are_compared_whole() -> None:
    digest = token_digest(TICKET.token)
    assert same_digest(digest, bytes(digest))
    assert not same_digest(digest, digest[:-1] + b"\x00")
    assert not same_digest(digest, digest[:-1])
