"""Redaction finds a secret however the stream is cut, and changes nothing else."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from shovey_agent.supervisor.redact import MARK, Redactor, patterns_of

# Few letters, so that secrets overlap, repeat and begin within each other.
_text = st.text("abc", max_size=60).map(str.encode)
_secrets = st.lists(st.text("abc", min_size=1, max_size=6).map(str.encode), min_size=1, max_size=4)


def redact(patterns: list[bytes], pieces: list[bytes]) -> bytes:
    redactor = Redactor(patterns)
    return b"".join([*map(redactor.feed, pieces), redactor.flush()])


def plain_redact(patterns: list[bytes], text: bytes) -> bytes:
    """The rule at its plainest: byte by byte, which belong to an occurrence, and where joined ones begin."""
    inside = [False] * len(text)
    joins = [False] * (len(text) + 1)  # whether a byte belongs together with the one before it
    for pattern in patterns:
        for at in range(len(text) - len(pattern) + 1):
            if text[at : at + len(pattern)] == pattern:
                inside[at : at + len(pattern)] = [True] * len(pattern)
                joins[at + 1 : at + len(pattern)] = [True] * (len(pattern) - 1)
    shown = b""
    for at, byte in enumerate(text):
        if not inside[at]:
            shown += bytes([byte])
        elif not joins[at]:
            shown += MARK
    return shown


@given(patterns=_secrets, text=_text, cuts=st.lists(st.integers(0, 60)))
@example(patterns=[b"abca", b"cab"], text=b"abcab", cuts=[3])
@example(patterns=[b"aaaa"], text=b"a" * 40, cuts=list(range(40)))
def test_what_is_shown_does_not_depend_on_how_the_stream_was_cut(
    patterns: list[bytes], text: bytes, cuts: list[int]
) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[start:stop] for start, stop in pairwise(edges)]
    shown = redact(patterns, pieces)
    assert shown == plain_redact(patterns, text)
    assert not any(pattern in part for part in shown.split(MARK) for pattern in patterns)


def test_only_what_may_become_a_secret_is_held_back() -> None:
    redactor = Redactor([b"hunter2"])
    assert redactor.feed(b"password? hun") == b"password? "
    assert redactor.feed(b"dred\n") == b"hundred\n"
    assert redactor.feed(b"hunter") == b""
    assert redactor.feed(b"2!") == MARK + b"!"


def test_stream_without_secrets_passes_untouched() -> None:
    assert redact([], [bytes(range(256))]) == bytes(range(256))


def test_lines_of_a_secret_are_secrets_and_its_short_ones_are_not() -> None:
    assert patterns_of([b"-----BEGIN-----\nab\nabcdefgh\n"]) == [
        b"-----BEGIN-----",
        b"-----BEGIN-----\nab\nabcdefgh",
        b"abcdefgh",
    ]


@given(st.binary(min_size=1, max_size=5000).filter(lambda secret: secret.strip() and b"\n" not in secret))
def test_no_byte_of_a_long_secret_is_left(secret: bytes) -> None:
    secret = secret.strip()
    shown = redact(patterns_of([secret]), [b"\n", secret[: len(secret) // 2], secret[len(secret) // 2 :], b"\n"])
    assert shown.replace(MARK, b"") == b"\n\n"
