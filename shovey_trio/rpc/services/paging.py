"""Pages and resume tokens: opaque to clients, checked when they come back."""

from __future__ import annotations

import re
from base64 import b64decode, urlsafe_b64encode

from shovey_trio.core.errors import InvalidRequest, InvalidToken
from shovey_trio.nursery.watch import WatchPosition

_DEFAULT = 100
_LARGEST = 1000
# Commit sequences are 64-bit signed integers in the store.
_LARGEST_SEQUENCE = 2**63 - 1
_RESUME = re.compile(r"(?P<job>[0-9a-f-]{36}):(?P<changes>[0-9a-f]{1,16}):(?P<output>[0-9a-f]{1,16})")


def page_size(asked: int) -> int:
    """How many entries a page gets.

    Raises:
        InvalidRequest: negative.
    """
    if asked < 0:
        raise InvalidRequest("page_size must not be negative", field="page_size")
    return min(asked or _DEFAULT, _LARGEST)


def encode_name(name: str) -> str:
    """A page token that continues after a name; '' for ''."""
    return urlsafe_b64encode(name.encode()).decode("ascii") if name else ""


def decode_name(token: str) -> str:
    """The name in a page token.

    Raises:
        InvalidToken: not a token of ours.
    """
    try:
        # Strictly: by default what is not base64 is skipped, and garbage would mean the first page.
        return b64decode(token, altchars=b"-_", validate=True).decode()
    except ValueError as error:
        raise InvalidToken("this page token is not from this server") from error


def encode_resume(job_id: str, position: WatchPosition) -> str:
    """A resume token: the job, and what of it the watcher has been given."""
    return f"{job_id}:{position.changes:x}:{position.output:x}"


def decode_resume(token: str, job_id: str) -> WatchPosition | None:
    """The position in a resume token; None for the empty one.

    Raises:
        InvalidToken: not a token of ours, or another job's.
    """
    if not token:
        return None
    match = _RESUME.fullmatch(token)
    if match is None or match["job"] != job_id:
        raise InvalidToken("this resume token is not of this job")
    position = WatchPosition(changes=int(match["changes"], 16), output=int(match["output"], 16))
    if max(position.changes, position.output) > _LARGEST_SEQUENCE:
        raise InvalidToken("this resume token is not from this server")
    return position
