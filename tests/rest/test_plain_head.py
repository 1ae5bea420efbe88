"""What is read without h11 means what it means to h11; what is not ordinary is left to it."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shovey_trio.http.plain_head import PlainHead, read_plain_head, response_head

_HEAD = (
    b"PUT /shovey/jobs/1/a%20b?x=1 HTTP/1.1\r\nHost: h:1\r\nContent-Length: 12\r\nX-Ops-UserId:  n 1\t\r\nMethod: PUT"
)


def by_h11(head: bytes) -> PlainHead:
    """The same head, read by h11."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(head + b"\r\n\r\n")
    event = connection.next_event()
    assert isinstance(event, h11.Request)
    headers = {bytes(name): bytes(value) for name, value in event.headers}
    length = int(headers.get(b"content-length", b"0"))
    return PlainHead(event.method.decode(), event.target.decode(), headers, length)


def test_an_ordinary_head_is_read() -> None:
    found = read_plain_head(_HEAD, headers_limit=10)
    assert found == by_h11(_HEAD)
    assert found.length == 12
    assert found.headers[b"x-ops-userid"] == b"n 1"


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.0\r\nHost: h",
        b"GET / HTTP/1.1",
        b"GET / HTTP/1.1\r\nAccept: a",
        b"GET / HTTP/1.1\r\nHost: h\r\nHost: h",
        b"GET / HTTP/1.1\r\nHost: h\r\nhost: h",
        b"GET http://h/ HTTP/1.1\r\nHost: h",
        b"GET /\xc3\xa9 HTTP/1.1\r\nHost: h",
        b"GET /  HTTP/1.1\r\nHost: h",
        b"\r\nGET / HTTP/1.1\r\nHost: h",
        b"GET / HTTP/1.1\r\nHost: h\r\n folded",
        b"GET / HTTP/1.1\r\nHost: h\r\nA : b",
        b"GET / HTTP/1.1\r\nHost: h\r\nA: b\x00c",
        b"GET / HTTP/1.1\r\nHost: h\r\nA: b\rc",
        b"GET / HTTP/1.1\r\nHost: h\r\nA: b\nC: d",
        b"GET / HTTP/1.1\nHost: h",
        b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1, 1",
        b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: +1",
        b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1_0",
        b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 1",
        b"GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked",
        b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close",
        b"GET / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue",
        b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket",
        b"GET / HTTP/1.1\r\nHost: h\r\nA: 1\r\nB: 2",
    ],
)
def test_what_is_not_ordinary_is_left_to_h11(head: bytes) -> None:
    assert read_plain_head(head, headers_limit=2) is None


_PARTS = (
    b"\r\n",
    b"\n",
    b"\r",
    b": ",
    b":",
    b" ",
    b"\t",
    b"\0",
    b"\xe9",
    b"Host",
    b"A-b",
    b"x",
    b"1",
    b"Content-Length",
    b"Transfer-Encoding",
    b"chunked",
    b"Connection",
)


@given(st.lists(st.sampled_from(_PARTS), max_size=14))
def test_whatever_is_read_is_what_h11_reads(parts: list[bytes]) -> None:
    head = b"GET / HTTP/1.1\r\nHost: h" + b"".join(parts)
    # The empty line ends a head, wherever it is.
    head = head.partition(b"\r\n\r\n")[0]
    found = read_plain_head(head, headers_limit=100)
    if found is not None:
        assert found == by_h11(head)


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: b", "a\nb", "a\rb", "a\0b"])
def test_a_response_header_of_more_than_one_line_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="line"):
        response_head(200, b"OK", {"A": value})
