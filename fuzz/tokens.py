"""Small texts that clients send back or make up: page and resume tokens, searches, sequences, Chef's signed headers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from fuzz.golden import document
from fuzz.target import Target
from shovey_trio.core.chef.signing import (
    SignatureMalformed,
    SignatureRefused,
    load_public_key,
    read_signature,
    verify_signature,
)
from shovey_trio.core.errors import InvalidQuorum, InvalidRequest, InvalidToken
from shovey_trio.core.jobs.model import Node
from shovey_trio.core.jobs.quorum import required_nodes
from shovey_trio.core.jobs.search import parse_search, unescape_query
from shovey_trio.nursery.watch import WatchPosition
from shovey_trio.rpc.services.paging import decode_name, decode_resume, encode_name, encode_resume
from shovey_trio.shovey.protocol.sequence import pieces, read_sequence
from shovey_trio.store.sql.pages import decode_key, decode_page, encode_page

_JOB: Final = "01234567-89ab-cdef-0123-456789abcdef"
_LISTING: Final = ("jobs", "default")
_VECTORS: Final = document("chef-signing-vectors.json")
_KEY: Final = load_public_key(_VECTORS["public_key"])
_NODES: Final = (
    Node(name="web-1", organization="default", enrolled_at=0.0, presence_since=0.0, tags={"role": "web"}),
    Node(name="db-[1]", organization="default", enrolled_at=0.0, presence_since=0.0),
)


def _page(data: bytes) -> None:
    """A token as it comes, and one of this listing; what is in it goes to the database as a key or a name."""
    text = data.decode("utf-8", "replace")
    for token in (text, encode_page(_LISTING, text)):
        for decode in (decode_page, decode_key):
            try:
                last = decode(_LISTING, token)
            except InvalidToken:
                continue
            assert last if isinstance(last, str) else 0 <= last < 2**63
    try:
        assert decode_name(encode_name(text)) == text
        decode_name(text)
    except InvalidToken:
        return


def _resume(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    for token in (text, f"{_JOB}:{text}"):
        try:
            position = decode_resume(token, _JOB)
        except InvalidToken:
            continue
        if position is not None:
            assert 0 <= position.changes < 2**63
            assert 0 <= position.output < 2**63
            assert decode_resume(encode_resume(_JOB, position), _JOB) == position


def _search(data: bytes) -> None:
    holds = parse_search(unescape_query(data.decode("utf-8", "replace")))
    for node in _NODES:
        assert holds(node) in (True, False)


def _number(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    with suppress(InvalidQuorum):
        assert 0 <= required_nodes(text, 7) <= 7
    wanted = pieces(read_sequence(text), size=100_000, complete=True)
    assert 0 <= wanted.begin <= wanted.end <= 100_000


def _chef(data: bytes) -> None:
    """Headers, one a line, and behind an empty line the body."""
    head, _, body = data.partition(b"\n\n")
    headers = {}
    for line in head.decode("latin-1").split("\n"):
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    # The clock is the client's own: what is looked for lies behind that.
    signature = read_signature(headers, body, now=_NOW, clock_skew=10**12)
    signature.user.encode()
    verify_signature(signature, method="GET", path="/shovey/jobs", key=_KEY)


_NOW: Final = 1_795_319_063.0


def _public_key(data: bytes) -> None:
    assert load_public_key(data.decode("utf-8", "replace")).key_size >= 1024


def _chef_seeds() -> Iterator[bytes]:
    for vector in _VECTORS["vectors"]:
        lines = [f"{name}: {value}" for name, value in vector["headers"].items()]
        yield "\n".join(lines).encode() + b"\n\n" + vector["body"].encode()[:500]


TARGETS: Final = (
    Target(
        name="page-token",
        decode=_page,
        seeds=lambda: [b"web-1", b"17", b"9" * 20, b"9" * 5000, encode_page(_LISTING, "17").encode()],
        max_len=8192,
    ),
    Target(
        name="resume-token",
        decode=_resume,
        seeds=lambda: [b"1f:2a", encode_resume(_JOB, WatchPosition(changes=7, output=9)).encode()],
        max_len=256,
    ),
    Target(
        name="search",
        decode=_search,
        seeds=lambda: [
            b"name:web-*",
            b"name:(web-1 OR db-?) AND NOT tags:role=web",
            b'name:"web-1" AND (tags:a\\* OR *:*)',
            b"tags%3Arole%253Dweb",
            b"name:[a TO b] +x -y z~2 w^3 /re/",
            b'a~. OR b^. AND "c d"~1.5',
            b"-" + b"(" * 700 + b"a" + b")" * 700,
            b"a b " * 100,
        ],
        refusals=(InvalidRequest,),
        max_len=1500,
    ),
    Target(
        name="numbers",
        decode=_number,
        seeds=lambda: [b"75%", b"3", b"-1", b"12345"],
        refusals=(InvalidRequest,),
        max_len=6000,
    ),
    Target(
        name="chef-headers",
        decode=_chef,
        seeds=_chef_seeds,
        refusals=(SignatureMalformed, SignatureRefused),
        max_len=2048,
    ),
    Target(
        name="chef-public-key",
        decode=_public_key,
        seeds=lambda: [_VECTORS["public_key"].encode()],
        refusals=(InvalidRequest,),
        max_len=2048,
    ),
)
