"""HTTP requests and responses as the handlers see them, free of h11."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol
from urllib.parse import parse_qsl

from shovey_trio.core.errors import Code, Exit, ShoveyError

JSON = "application/json"


class HttpRefused(ShoveyError):
    """A request that HTTP itself refuses, with the status to answer; clients see the message."""

    reason, code, http, exit = "HTTP_REFUSED", Code.INVALID_ARGUMENT, 400, Exit.USAGE
    # Statuses that tell of a bound of ours; the message says which.
    TIMED_OUT: ClassVar[int] = 408
    TOO_LARGE: ClassVar[int] = 413
    HEADERS_TOO_LARGE: ClassVar[int] = 431

    def __init__(self, status: int, message: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})


class Body(Protocol):
    """A request's body, still on its way."""

    async def read(self, limit: int) -> bytes:
        """All of it.

        Raises:
            HttpRefused: more than ``limit`` bytes (413), or the client is too slow (408).
        """
        ...

    async def receive(self) -> bytes:
        """The next piece, at most 64 KiB; empty at the end.

        Raises:
            HttpRefused: it does not come in time (408).
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request's head, and its body.

    Attributes:
        target: as on the wire, query included.
        headers: by lower-case name; what was repeated is joined by ``, ``.
        scheme: ``http`` or ``https``, as seen by the listener.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    scheme: str
    peer: str
    body: Body

    @property
    def path(self) -> str:
        """As on the wire: nothing decoded, no query."""
        return self.target.partition("?")[0]

    @property
    def query(self) -> dict[str, str]:
        """Decoded; the first of what is repeated, and empty values are values."""
        pairs = parse_qsl(self.target.partition("?")[2], keep_blank_values=True)
        return dict(reversed(pairs))


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A response that is ready."""

    status: int = 200
    body: bytes = b""
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


class Reply(Protocol):
    """Where a handler's one response goes."""

    async def send(self, response: Response) -> None:
        """Sends it whole."""
        ...

    async def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Begins a response whose body follows by ``write``; it ends when the handler returns."""
        ...

    async def write(self, data: bytes) -> None:
        """Sends a piece of the body; waits while the client is slow, within the server's limit for that."""
        ...

    async def hold(self, wait: Callable[[], Awaitable[None]]) -> None:
        """Waits before the answer, at most until the server stops; a client that hangs up ends the handler.

        Raises:
            Whatever ``wait`` raises.
        """
        ...


def json_bytes(value: Any) -> bytes:
    """As the recorded server writes it: sorted keys, no spaces, a line feed at the end."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8") + b"\n"


def json_response(value: Any, *, status: int = 200) -> Response:
    return Response(status=status, body=json_bytes(value))


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """``{"error":["text"]}``, which knife shows."""
    return Response(status=status, body=json_bytes({"error": [message]}), headers=headers or {})
