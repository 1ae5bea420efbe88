"""What an operator asks for when a job is to be started, and whether it can be asked at all."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from shovey_trio.core.errors import InvalidRequest, VotingUnsupported
from shovey_trio.core.jobs.command_input import NO_INPUT, CommandInput, input_problems
from shovey_trio.core.jobs.model import Principal
from shovey_trio.core.jobs.targeting import Selection
from shovey_trio.store.contract import RequestKey

_MAX_COMMAND = 256
_MAX_REQUEST_ID = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class StartJob:
    """What an operator asks for. Durations in seconds; None takes the default."""

    command: str
    selection: Selection
    quorum: str = ""
    run_timeout: float | None = None
    kill_grace: float | None = None
    request_id: str = ""
    dry_run: bool = False
    vote: bool = False
    input: CommandInput = NO_INPUT
    # A name that no node has is a run that is unavailable from the start, as Shovey's clients expect, and no error.
    accept_unknown: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class JobDefaults:
    """What a job gets when its request does not say; seconds."""

    run_timeout: float = 3600.0
    max_run_timeout: float = 7 * 86400.0
    kill_grace: float = 10.0
    max_kill_grace: float = 600.0


def check_request(request: StartJob, limits: JobDefaults) -> None:
    """Whether a request can be made at all, on whatever nodes.

    Raises:
        InvalidRequest, VotingUnsupported: what is wrong with it.
    """
    if request.vote:
        raise VotingUnsupported("votes are not supported yet; a quorum of nodes that are up is checked instead")
    if not request.command or len(request.command) > _MAX_COMMAND or not request.command.isprintable():
        raise InvalidRequest(
            f"command must be the name of a whitelist entry, 1 to {_MAX_COMMAND} printable characters",
            field="command",
        )
    if len(request.request_id) > _MAX_REQUEST_ID:
        raise InvalidRequest(f"request_id may have {_MAX_REQUEST_ID} characters", field="request_id")
    for field, problem in input_problems(request.input):
        raise InvalidRequest(f"{field}: {problem}", field=field)
    if request.run_timeout is not None and not 0 < request.run_timeout <= limits.max_run_timeout:
        raise InvalidRequest(
            f"run_timeout must be above 0 and at most {limits.max_run_timeout:g} seconds", field="run_timeout"
        )
    check_kill_grace(request.kill_grace, limits)


def check_kill_grace(kill_grace: float | None, limits: JobDefaults) -> None:
    """Raises ``InvalidRequest`` for a grace that is longer than permitted, or none."""
    limit = limits.max_kill_grace
    if kill_grace is not None and not 0 <= kill_grace <= limit:
        raise InvalidRequest(f"kill_grace may be at most {limit:g} seconds", field="kill_grace")


def request_key(principal: Principal, request: StartJob) -> RequestKey | None:
    """By what the same request is known when it is made again; None when it does not want to be."""
    if not request.request_id:
        return None
    return RequestKey(
        organization=principal.organization,
        principal=principal.label,
        request_id=request.request_id,
        digest=_digest(request),
    )


def _digest(request: StartJob) -> bytes:
    # Of secrets only their names: not even a digest of one is stored.
    body = {
        "kind_of_selection": type(request.selection).__name__,
        **{field: value for field, value in asdict(request).items() if field not in ("request_id", "input")},
    }
    if request.input:
        body["input"] = {**asdict(request.input.record()), "stdin": hashlib.sha256(request.input.stdin).hexdigest()}
    return hashlib.sha256(json.dumps(body, sort_keys=True, default=str).encode()).digest()
