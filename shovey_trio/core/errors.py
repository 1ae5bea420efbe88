"""Every error that a caller can act on, with its code in each protocol.

Two families, after h11: ``LocalProtocolError``-like bugs of ours (``IllegalTransition``) are plain exceptions that
end up as INTERNAL; everything else derives from ``ShoveyError`` and means that the caller, a peer or the world is at
fault. One class per decision the caller can make. ``reason`` is stable and goes out as ``ErrorInfo.reason``;
``details`` go out as ``ErrorInfo.metadata``. The codes of every class stand in the class itself, so that a new error
cannot be forgotten in a table; ``tests/core/test_errors.py`` checks that none is left at the defaults.
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar


class Code(Enum):
    """gRPC status codes by number, so that ``core`` needs no grpc."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class Exit(Enum):
    """Exit codes of ``shovey``; documented in docs/cli.md."""

    OK = 0
    RUNS_FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    DENIED = 4
    CONFLICT = 5
    QUORUM = 6
    UNREACHABLE = 7
    BUSY = 8
    INTERNAL = 9
    DETACHED = 10
    TRUNCATED = 11
    DAMAGED = 12
    # As shells report SIGINT and SIGPIPE.
    INTERRUPTED = 130
    OUTPUT_CLOSED = 141


class IllegalTransition(Exception):
    """Our own bug: a state change that the tables of ``core.jobs.states`` do not allow."""

    def __init__(self, *, subject: str, before: str, after: str) -> None:
        super().__init__(f"{subject} may not go from {before} to {after}")
        self.subject = subject
        self.before = before
        self.after = after


class ShoveyError(Exception):
    """Base of every error that is somebody else's to act on.

    Attributes:
        reason: stable UPPER_SNAKE word.
        code: gRPC status.
        http: HTTP status.
        exit: exit code of the command line.
        details: string values for programs, such as the names of unknown nodes.
    """

    reason: ClassVar[str] = "UNSPECIFIED"
    code: ClassVar[Code] = Code.UNKNOWN
    http: ClassVar[int] = 500
    exit: ClassVar[Exit] = Exit.INTERNAL

    def __init__(self, message: str, **details: str) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


class InvalidRequest(ShoveyError):
    """A field of the request is malformed; ``field`` names it."""

    reason, code, http, exit = "INVALID_REQUEST", Code.INVALID_ARGUMENT, 400, Exit.USAGE


class InvalidQuorum(ShoveyError):
    """The quorum is not a count, a percentage or is impossible for the number of nodes."""

    reason, code, http, exit = "INVALID_QUORUM", Code.INVALID_ARGUMENT, 400, Exit.USAGE


class NoTargets(ShoveyError):
    """The selection names no node."""

    reason, code, http, exit = "NO_TARGETS", Code.INVALID_ARGUMENT, 400, Exit.USAGE


class UnknownNodes(ShoveyError):
    """Names that no registered node has; ``nodes`` lists them."""

    reason, code, http, exit = "UNKNOWN_NODES", Code.NOT_FOUND, 404, Exit.NOT_FOUND


class NotFound(ShoveyError):
    """The job, run, node or user does not exist, or not for this organization."""

    reason, code, http, exit = "NOT_FOUND", Code.NOT_FOUND, 404, Exit.NOT_FOUND


class RequestIdReused(ShoveyError):
    """The same request id came with another body; ``job_id`` is the job it started."""

    reason, code, http, exit = "REQUEST_ID_REUSED", Code.ALREADY_EXISTS, 409, Exit.CONFLICT


class VotingUnsupported(ShoveyError):
    """A vote was asked for; the order kinds are reserved, the feature is not there yet."""

    reason, code, http, exit = "VOTING_UNSUPPORTED", Code.UNIMPLEMENTED, 501, Exit.USAGE


class Unauthenticated(ShoveyError):
    """No identity, or one that proves nothing here."""

    reason, code, http, exit = "UNAUTHENTICATED", Code.UNAUTHENTICATED, 401, Exit.DENIED


class PermissionDenied(ShoveyError):
    """The identity is known and may not do this."""

    reason, code, http, exit = "PERMISSION_DENIED", Code.PERMISSION_DENIED, 403, Exit.DENIED


class InvalidEnrollmentToken(ShoveyError):
    """The token is unknown, used, expired, or bound to another name. Which one is not told to the caller."""

    reason, code, http, exit = "INVALID_ENROLLMENT_TOKEN", Code.PERMISSION_DENIED, 403, Exit.DENIED


class InvalidCertificateRequest(ShoveyError):
    """The CSR does not parse, is not signed by its key, or has a key of another kind than ECDSA P-256."""

    reason, code, http, exit = "INVALID_CERTIFICATE_REQUEST", Code.INVALID_ARGUMENT, 400, Exit.USAGE


class HistoryGone(ShoveyError):
    """The resume token points before what retention kept. Watch again without a token."""

    reason, code, http, exit = "HISTORY_GONE", Code.OUT_OF_RANGE, 410, Exit.NOT_FOUND


class InvalidToken(ShoveyError):
    """A page or resume token that this server did not make for this call."""

    reason, code, http, exit = "INVALID_TOKEN", Code.INVALID_ARGUMENT, 400, Exit.USAGE


class OffsetOutOfRange(ShoveyError):
    """The offset lies behind the end of the run's output, or the run is finished and shorter."""

    reason, code, http, exit = "OFFSET_OUT_OF_RANGE", Code.OUT_OF_RANGE, 416, Exit.USAGE


class Overloaded(ShoveyError):
    """A written-down bound is reached; ``limit`` names it and ``retry_after_s`` says when to come back."""

    reason, code, http, exit = "OVERLOADED", Code.RESOURCE_EXHAUSTED, 503, Exit.BUSY


class TooManyFailures(ShoveyError):
    """An address has failed too often to prove who it is; ``retry_after_s`` says when it is heard again."""

    reason, code, http, exit = "TOO_MANY_FAILURES", Code.RESOURCE_EXHAUSTED, 429, Exit.BUSY


class Draining(ShoveyError):
    """The server is stopping and takes no more jobs."""

    reason, code, http, exit = "DRAINING", Code.UNAVAILABLE, 503, Exit.BUSY


class JobElsewhere(ShoveyError):
    """The job has not ended and does not live in this controller; ask again, or where it lives."""

    reason, code, http, exit = "JOB_ELSEWHERE", Code.UNAVAILABLE, 503, Exit.BUSY


class StoreUnavailable(ShoveyError):
    """The store cannot write or read now: disk full, locked, I/O error. Nothing was acknowledged."""

    reason, code, http, exit = "STORE_UNAVAILABLE", Code.UNAVAILABLE, 503, Exit.BUSY


class StoreCorrupt(ShoveyError):
    """The store's file is damaged or not ours; it is named and never served."""

    reason, code, http, exit = "STORE_CORRUPT", Code.DATA_LOSS, 500, Exit.INTERNAL


class RowDamaged(ShoveyError):
    """A row of the store is not as it was written; ``row`` names it. Everything else is served."""

    reason, code, http, exit = "ROW_DAMAGED", Code.DATA_LOSS, 500, Exit.DAMAGED


class NodeProtocolError(ShoveyError):
    """A node broke the agent protocol: wrong first message, a run that is not its own, garbage."""

    reason, code, http, exit = "NODE_PROTOCOL", Code.FAILED_PRECONDITION, 400, Exit.INTERNAL


class DuplicateChunk(ShoveyError):
    """A piece of output with this sequence number is stored already; ``seq`` names it."""

    reason, code, http, exit = "DUPLICATE_CHUNK", Code.ALREADY_EXISTS, 409, Exit.CONFLICT


class IllegalReport(ShoveyError):
    """A node reports a state that its run cannot go to any more; nothing was changed."""

    reason, code, http, exit = "ILLEGAL_REPORT", Code.FAILED_PRECONDITION, 409, Exit.CONFLICT


class SerfUnavailable(ShoveyError):
    """The serf agent is absent, restarting, or has too much queued."""

    reason, code, http, exit = "SERF_UNAVAILABLE", Code.UNAVAILABLE, 503, Exit.BUSY


class ConfigurationInvalid(ShoveyError):
    """The configuration has errors; the message lists all of them."""

    reason, code, http, exit = "CONFIGURATION_INVALID", Code.FAILED_PRECONDITION, 500, Exit.USAGE


class Unreachable(ShoveyError):
    """The client could not reach the server."""

    reason, code, http, exit = "UNREACHABLE", Code.UNAVAILABLE, 503, Exit.UNREACHABLE


def words_of(error: BaseException) -> str:
    """What an error says to a person: ``/etc/x: Permission denied``, not ``[Errno 13] …``."""
    if isinstance(error, ShoveyError):
        return error.message
    if isinstance(error, OSError) and error.strerror:
        return ": ".join(str(part) for part in (error.filename, error.filename2, error.strerror) if part)
    return str(error) or type(error).__name__


def first_leaf(error: BaseException) -> BaseException:
    """The first error inside groups of them, or the error itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
