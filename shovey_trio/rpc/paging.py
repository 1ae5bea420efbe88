"""Pages and resume tokens: opaque to clients, checked when they come back."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode

from shovey_trio.core.errors import InvalidRequest, InvalidToken

_DEFAULT = 100
_LARGEST = 1000


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
        return urlsafe_b64decode(token.encode("ascii")).decode()
    except ValueError as error:
        raise InvalidToken("this page token is not from this server") from error


def encode_resume(job_id: str, seq: int) -> str:
    """A resume token: the job and the commit sequence of the last event that was sent."""
    return f"{job_id}:{seq:x}"


def decode_resume(token: str, job_id: str) -> int | None:
    """The commit sequence in a resume token; None for the empty one.

    Raises:
        InvalidToken: not a token of ours, or another job's.
    """
    if not token:
        return None
    of_job, _, seq = token.rpartition(":")
    try:
        value = int(seq, 16)
    except ValueError:
        value = -1
    if of_job != job_id or value < 0:
        raise InvalidToken("this resume token is not of this job")
    return value
