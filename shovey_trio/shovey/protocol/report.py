"""Shovey as it is spoken over HTTP: what a node reports of its runs, and what we take it to mean.

Recorded in ``tests/golden/schob-put.jsonl``. A schob says little: one status word, one byte of exit status and one line
of text, and part of what it means stands in the text alone. The tables here are the only place that reads it.

What a node says in this protocol proves nothing about its processes. schob sends one SIGINT to the command itself and
forgets it (reference: shovey.md, section 6, fault 17), so a run that was asked to cancel ends as ``cancel_unproven``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from shovey_trio.core.errors import InvalidRequest
from shovey_trio.core.jobs.events import EndTold, NodeRefused, NodeStarted
from shovey_trio.core.jobs.model import StreamName, ToldEnd
from shovey_trio.core.jobs.states import RunState
from shovey_trio.core.trust.orders import OrderKind, RefusalReason
from shovey_trio.shovey.protocol.wire import go_json

_MAX_ERROR: Final = 4096
_PROTOCOL: Final[Mapping[str, object]] = {"protocol_major": 0, "protocol_minor": 1}
_NOT_VERIFIED: Final = "could not be verified"
_TIMED_OUT: Final = "timed out"
_SIGNAL: Final = "signal: "

#: As Go's syscall package words them on Linux; what stands in ``signal: …``.
SIGNAL_WORDS: Final[Mapping[int, str]] = {
    1: "hangup",
    2: "interrupt",
    3: "quit",
    4: "illegal instruction",
    5: "trace/breakpoint trap",
    6: "aborted",
    7: "bus error",
    8: "floating point exception",
    9: "killed",
    10: "user defined signal 1",
    11: "segmentation fault",
    12: "user defined signal 2",
    13: "broken pipe",
    14: "alarm clock",
    15: "terminated",
    16: "stack fault",
    17: "child exited",
    18: "continued",
    19: "stopped (signal)",
    20: "stopped",
    21: "stopped (tty input)",
    22: "stopped (tty output)",
    23: "urgent I/O condition",
    24: "CPU time limit exceeded",
    25: "file size limit exceeded",
    26: "virtual timer expired",
    27: "profiling timer expired",
    28: "window changed",
    29: "I/O possible",
    30: "power failure",
    31: "bad system call",
}
_SIGNAL_NUMBERS: Final = {word: number for number, word in SIGNAL_WORDS.items()}


class PutStatus(StrEnum):
    """Every status that a node has been seen to report."""

    CREATED = "created"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    NACKED = "nacked"
    INVALID = "invalid"
    SHUTDOWN = "shutdown"
    KILLED = "killed"
    CANCELLED = "cancelled"
    BAD_FH = "bad_fh"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPut:
    """A report: ``PUT /shovey/jobs/ID/NODE``."""

    status: PutStatus
    exit_status: int = 0
    error: str = ""

    @property
    def is_unverified(self) -> bool:
        """Whether the node says that the signature of the order does not fit the key it holds."""
        return self.status is PutStatus.INVALID and _NOT_VERIFIED in self.error


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamPut:
    """A piece of output: ``PUT /shovey/stream/ID/NODE``.

    Attributes:
        seq: counted from 0 per stream.
        data: the bytes; what was no UTF-8 on the way here is U+FFFD, unless our own agent sent it.
    """

    stream: StreamName
    seq: int
    is_last: bool
    data: bytes


# --- receiving ------------------------------------------------------------------------------------------------


def parse_run_put(body: Mapping[str, object]) -> RunPut:
    """Reads a report; a missing exit status or error is 0 and empty, as goiardi has it.

    Raises:
        InvalidRequest: no status, or one that does not exist, or a member of another type.
    """
    status = body.get("status")
    if not isinstance(status, str):
        raise InvalidRequest("invalid status", field="status")
    try:
        known = PutStatus(status)
    except ValueError:
        raise InvalidRequest(f"invalid status: there is no {status[:40]!r}", field="status") from None
    error = body.get("error", "")
    if not isinstance(error, str):
        raise InvalidRequest("invalid error", field="error")
    return RunPut(status=known, exit_status=_exit_status(body.get("exit_status", 0)), error=_clean(error))


def parse_stream_put(body: Mapping[str, object]) -> StreamPut:
    """Reads a piece of output. The messages are goiardi's.

    Raises:
        InvalidRequest: a member is missing or of another type, or there is no such stream.
    """
    output, stream = body.get("output"), body.get("output_type")
    is_last, seq = body.get("is_last"), body.get("seq")
    if not isinstance(output, str):
        raise InvalidRequest("invalid output", field="output")
    if stream not in (StreamName.STDOUT.value, StreamName.STDERR.value):
        raise InvalidRequest("invalid output type", field="output_type")
    if not isinstance(is_last, bool):
        raise InvalidRequest("invalid is_last", field="is_last")
    if not isinstance(seq, int) or isinstance(seq, bool) or not 0 <= seq < 2**31:
        raise InvalidRequest("invalid seq", field="seq")
    return StreamPut(stream=StreamName(str(stream)), seq=seq, is_last=is_last, data=output_bytes(output))


def event_of(put: RunPut, now: float) -> NodeStarted | NodeRefused | EndTold | None:
    """What a report means for a run that has not ended; None for one that says nothing new."""
    match put.status:
        case PutStatus.CREATED:
            return None
        case PutStatus.RUNNING:
            return NodeStarted(at=now)
        case PutStatus.NACKED:
            return NodeRefused(kind=OrderKind.START, reason=RefusalReason.NOT_WHITELISTED, detail=put.error)
        case PutStatus.INVALID if put.is_unverified:
            return NodeRefused(kind=OrderKind.START, reason=RefusalReason.BAD_SIGNATURE, detail=put.error)
        case _:
            return _end_of(put, now)


def _end_of(put: RunPut, now: float) -> EndTold:
    state, cause, exit_code, signal = RunState.CRASHED, "", None, None
    match put.status:
        case PutStatus.SUCCEEDED:
            state, cause, exit_code = RunState.SUCCEEDED, "exited", 0
        case PutStatus.FAILED if put.error.endswith(_TIMED_OUT):
            state, cause = RunState.TIMED_OUT, "timed_out"
        case PutStatus.FAILED if put.error.startswith(_SIGNAL):
            state, cause = RunState.FAILED, "signalled"
            signal = _SIGNAL_NUMBERS.get(put.error.removeprefix(_SIGNAL).removesuffix(" (core dumped)"))
        case PutStatus.FAILED:
            state, cause, exit_code = RunState.FAILED, "exited", put.exit_status
        case PutStatus.INVALID:
            # The command never ran: no such program.
            state, cause = RunState.INVALID, "spawn_failed"
        case PutStatus.CANCELLED:
            state, cause = RunState.CANCEL_UNPROVEN, "cancelled"
        case PutStatus.SHUTDOWN:
            cause = "agent_stopped"
        case PutStatus.KILLED:
            cause = "agent_killed"
        case _:
            cause = "output_lost"
    return EndTold(
        end=ToldEnd(state=state, cause=cause, exit_code=exit_code, signal=signal, reported_at=now), detail=put.error
    )


# --- sending --------------------------------------------------------------------------------------------------


def run_put_body(put: RunPut, *, node: str, run_id: str) -> bytes:
    """The body of a report, as schob writes it."""
    report = {"node_name": node, "run_id": run_id, "status": put.status.value, "exit_status": put.exit_status}
    return go_json({**report, "error": put.error, **_PROTOCOL})


def stream_put_body(put: StreamPut, *, node: str, run_id: str) -> bytes:
    """The body of a piece of output, as schob writes it."""
    piece = {"node_name": node, "run_id": run_id, "seq": put.seq, "is_last": put.is_last}
    return go_json({**piece, "output_type": put.stream.value, "output": output_text(put.data), **_PROTOCOL})


# --- output as JSON text --------------------------------------------------------------------------------------


def output_text(data: bytes) -> str:
    """Output as text for JSON: a byte that is no UTF-8 becomes half a surrogate pair (PEP 383).

    goiardi reads that as U+FFFD, which is what schob would have sent; ``output_bytes`` reads the byte.
    """
    return data.decode("utf-8", "surrogateescape")


def output_bytes(text: str) -> bytes:
    """The bytes of output that came as JSON text; other halves of surrogate pairs are U+FFFD."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return _FOREIGN_SURROGATE.sub("\ufffd", text).encode("utf-8", "surrogateescape")


# U+DC80 to U+DCFF stand for the bytes 0x80 to 0xFF.
_FOREIGN_SURROGATE: Final = re.compile("[\ud800-\udc7f\udd00-\udfff]")


def _exit_status(value: object) -> int:
    if isinstance(value, int | float) and not isinstance(value, bool) and value % 1 == 0 and abs(value) < 2**31:
        return int(value)
    raise InvalidRequest("invalid exit_status", field="exit_status")


def _clean(text: str) -> str:
    return text[:_MAX_ERROR].encode("utf-8", "replace").decode()
