"""What Shovey's clients send: their JSON bodies as checked values.

Clients are sloppy in writing and so is this reader, within reason: knife sends ``quorum`` as a number where goiardi
took only text, and ``kill_timeout`` as text where a number was meant. What has no sensible meaning is an
``InvalidRequest``, never a guess.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from shovey_trio.core.errors import InvalidQuorum, InvalidRequest

# Names in one request; a job cannot be larger than the controller's bound on live runs anyway.
_MAX_NODES: Final = 50_000
_MAX_NAME: Final = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """``POST /shovey/jobs``. Durations in seconds; None takes the default.

    Attributes:
        nodes: each name once, in the order of the request.
        quorum: as ``core.jobs.quorum`` reads it.
    """

    command: str
    nodes: tuple[str, ...]
    quorum: str
    run_timeout: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRequest:
    """``PUT /shovey/jobs/cancel``; no nodes means all of them."""

    job_id: str
    nodes: tuple[str, ...]
    kill_timeout: float | None


def read_object(body: bytes) -> Mapping[str, Any]:
    """A request's JSON object.

    Raises:
        InvalidRequest: it is no JSON, or another kind of value.
    """
    if not body.strip():
        raise InvalidRequest("the body is empty")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidRequest("the body is not a JSON object")
    return value


def read_job_request(body: Mapping[str, Any]) -> JobRequest:
    """Checks the body of ``POST /shovey/jobs``.

    Raises:
        InvalidRequest, InvalidQuorum: a member is missing or makes no sense.
    """
    command = body.get("command")
    if not isinstance(command, str) or not command:
        raise InvalidRequest("no command provided, or it is not a string", field="command")
    nodes = _names(body.get("nodes"))
    if not nodes:
        raise InvalidRequest("no nodes provided", field="nodes")
    quorum = read_quorum(body.get("quorum"))
    if quorum.isdigit() and len(nodes) < int(quorum) <= len(body["nodes"]):
        # knife works its number out of the names it was given, of which some may be the same.
        quorum = "100%"
    return JobRequest(
        command=command,
        nodes=nodes,
        quorum=quorum,
        run_timeout=_duration(body.get("run_timeout"), "run_timeout"),
    )


def read_cancel_request(body: Mapping[str, Any]) -> CancelRequest:
    """Checks the body of ``PUT /shovey/jobs/cancel``.

    Raises:
        InvalidRequest: a member is missing or makes no sense.
    """
    job_id = body.get("run_id")
    if not isinstance(job_id, str) or not job_id:
        raise InvalidRequest("No shovey run ID provided, or provided id was invalid", field="run_id")
    return CancelRequest(
        job_id=job_id,
        nodes=() if body.get("nodes") is None else _names(body["nodes"]),
        kill_timeout=_duration(body.get("kill_timeout"), "kill_timeout"),
    )


def read_quorum(value: object) -> str:
    """A quorum as ``core.jobs.quorum`` reads it: a count, a fraction of nodes (rounded up), a percentage or nothing.

    Raises:
        InvalidQuorum: anything else.
    """
    match value:
        case None:
            return "100%"
        case bool():
            pass
        case int() if value >= 0:
            return str(value)
        case float() if 0 <= value < math.inf:
            return str(math.ceil(value))
        case str() if value.endswith("%") or value.isdigit():
            return value
        case str():
            try:
                number = float(value)
            except ValueError:
                number = math.nan
            if value == value.strip() and 0 <= number < math.inf:
                return str(math.ceil(number))
    raise InvalidQuorum(
        f"quorum {value!r} is neither a count such as 3 nor a percentage such as 75%", quorum=str(value)
    )


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise InvalidRequest("node list not an array", field="nodes")
    if len(value) > _MAX_NODES:
        raise InvalidRequest(f"more than {_MAX_NODES} nodes", field="nodes")
    for name in value:
        if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME or not name.isprintable():
            raise InvalidRequest("the node list holds something that is not the name of a node", field="nodes")
    return tuple(dict.fromkeys(value))


def _duration(value: object, field: str) -> float | None:
    """Seconds of a number or of the same as text.

    Raises:
        InvalidRequest: it is neither, or not above 0.
    """
    if value is None:
        return None
    seconds = math.nan
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            seconds = float(value)
    if not 0 < seconds < math.inf:
        raise InvalidRequest(f"{field} must be a number of seconds above 0", field=field)
    return seconds
