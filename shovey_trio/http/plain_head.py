"""The heads of ordinary requests, in one pass; whatever is not ordinary is left to h11.

Old nodes send four requests for every run, all of the same plain kind, and taking their heads apart with h11 costs more
than all the rest of the work that they make. What is read here is a subset of what h11 accepts: HTTP/1.1, ASCII,
a path, each header once, a body with a Content-Length or none, nothing said of the connection. Of everything else
(and of everything that is wrong) nothing is decided here, so that HTTP has one meaning: h11's. ``bench/rest.py`` says
what it saves: a signed request costs 1.45 times as much when h11 reads and writes it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_REQUEST_LINE: Final = re.compile(rb"([A-Z]{3,7}) (/[!-~]*) HTTP/1\.1")
# As RFC 9112 has them, without folding, without bytes above 127, and with a value.
_HEADERS: Final = re.compile(rb"(?:\r\n[!#$%&'*+.^_`|~0-9A-Za-z-]+:[ \t]*[!-~](?:[ \t]*[!-~])*[ \t]*)+")
_LENGTH: Final = re.compile(rb"[0-9]{1,12}")
# Headers with a say in how messages are framed, or in what comes after.
_NOT_PLAIN: Final = (b"transfer-encoding", b"connection", b"expect", b"upgrade", b"te", b"trailer", b"keep-alive")


@dataclass(frozen=True, slots=True)
class PlainHead:
    """A request's head.

    Attributes:
        headers: by lower-case name.
        length: bytes of the body.
    """

    method: str
    target: str
    headers: Mapping[bytes, bytes]
    length: int


def read_plain_head(head: bytes, *, headers_limit: int) -> PlainHead | None:
    """A request's head, or None when h11 has to look at it.

    Args:
        head: up to the empty line, without the line ends before it.
        headers_limit: how many headers are taken.
    """
    line = _REQUEST_LINE.match(head)
    if line is None or _HEADERS.fullmatch(head, line.end()) is None:
        return None
    headers: dict[bytes, bytes] = {}
    lines = head[line.end() + 2 :].split(b"\r\n")
    for field in lines:
        name, _, value = field.partition(b":")
        headers[name.lower()] = value.strip(b" \t")
    if len(headers) != len(lines) or len(lines) > headers_limit or b"host" not in headers:
        return None
    for name in _NOT_PLAIN:
        if name in headers:
            return None
    length = headers.get(b"content-length", b"0")
    if _LENGTH.fullmatch(length) is None:
        return None
    return PlainHead(line[1].decode("ascii"), line[2].decode("ascii"), headers, int(length))


def response_head(status: int, reason: bytes, headers: Mapping[str, str]) -> bytes:
    """A response's head, the empty line included.

    Raises:
        ValueError: a header that would be more than one line, or is no ASCII.
    """
    text = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if text.count("\r") != len(headers) or text.count("\n") != len(headers) or "\0" in text:
        raise ValueError("a header of a response holds a line's end")
    return b"HTTP/1.1 %d %b\r\n%b\r\n" % (status, reason, text.encode("ascii"))
