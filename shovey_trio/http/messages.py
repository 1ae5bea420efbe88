"""What HTTP itself has to say, and JSON as Chef's clients know it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from starlette.responses import Response

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


def json_bytes(value: Any) -> bytes:
    """As the recorded server writes it: sorted keys, no spaces, a line feed at the end."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8") + b"\n"


def error_bytes(message: str) -> bytes:
    """``{"error":["text"]}``, which knife shows; what this listener says in its own name looks the same."""
    return json_bytes({"error": [message]})


def json_response(value: Any, *, status: int = 200) -> Response:
    return Response(json_bytes(value), status_code=status, media_type=JSON)


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return Response(error_bytes(message), status_code=status, media_type=JSON, headers=headers)
