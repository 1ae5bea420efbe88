"""What the executor is told and what it tells: plain frozen values.

Times are unix seconds (UTC), durations seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from shovey_agent.run.accounts import Account
from shovey_trio.core.jobs.command_input import NO_SECRETS, Secrets
from shovey_trio.core.jobs.events import ReportOutcome, RunReport
from shovey_trio.core.whitelist.entry import NO_LIMITS, Limits


class ExitCause(StrEnum):
    """Why a run is over: the ``cause`` of its report, in the words of the spool."""

    EXITED = "exited"
    SIGNALLED = "signalled"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    SPAWN_FAILED = "spawn_failed"
    # Nobody can say how the command ended: its supervisor died, or could not show that the tree is gone.
    SUPERVISOR_LOST = "supervisor_lost"
    NODE_REBOOTED = "node_rebooted"

    @property
    def outcome(self) -> ReportOutcome:
        """What the cause means to the controller."""
        match self:
            # The command never ran: it failed, with a reason, rather than that nobody knows.
            case ExitCause.EXITED | ExitCause.SIGNALLED | ExitCause.SPAWN_FAILED:
                return ReportOutcome.EXITED
            case ExitCause.TIMED_OUT:
                return ReportOutcome.TIMED_OUT
            case ExitCause.CANCELLED:
                return ReportOutcome.CANCELLED
            case ExitCause.SUPERVISOR_LOST | ExitCause.NODE_REBOOTED:
                return ReportOutcome.CRASHED


class RunPhase(StrEnum):
    """How far a run has come on this node."""

    ACCEPTED = "accepted"
    RUNNING = "running"
    FINISHED = "finished"


class ExecutorRefusal(StrEnum):
    """Why the executor did not take a run; nothing of it is left behind."""

    BUSY = "busy"
    SPOOL_FULL = "spool_full"
    SPOOL_ERROR = "spool_error"
    INVALID_SPEC = "invalid_spec"


class CancelReason(StrEnum):
    """What becomes the cause of a run that is ended on request."""

    CANCEL = "cancel"
    TIMEOUT = "timeout"


class CancelOutcome(StrEnum):
    """What a request to end a run met."""

    REQUESTED = "requested"
    ALREADY_FINISHED = "already_finished"
    UNKNOWN_RUN = "unknown_run"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """A command that has passed every check and may be started, once.

    Attributes:
        run_id: letters, digits, ``-`` and ``_``, at most 64.
        epoch: of the order.
        argv: never empty; ``argv[0]`` without a slash is looked up in the PATH of ``env``.
        env: added to the clean environment; cannot replace the ``SHOVEY_…`` variables.
        timeout: seconds the command may run, above 0.
        ends_by: when it must have ended, by ``elapsed_clock`` of this boot, waiting included; the earlier counts.
        grace: seconds between SIGTERM and SIGKILL.
        order: the signed order as received, kept with the run.
        signature: of those bytes.
        account: to run as; None for the agent's own.
        stdin: standard input, sensitive or not.
        secrets: what of ``env`` and ``stdin`` is sensitive; its variables are not in ``env``.
        lock: of all runs with this word one is taken at a time; empty for none.
        concurrency: how many runs of this command are taken at a time; 0 for any number.
        output_cap: bytes of log kept from the beginning of its output; None for the spool's own limit.
    """

    run_id: str
    job_id: str
    epoch: int = 0
    node: str
    command: str
    argv: tuple[str, ...]
    cwd: str = "/"
    env: Mapping[str, str] = field(default_factory=dict)
    umask: int = 0o022
    timeout: float
    ends_by: float | None = None
    grace: float
    order: bytes = b""
    signature: bytes = b""
    account: Account | None = None
    nice: int = 0
    limits: Limits = NO_LIMITS
    stdin: bytes = field(default=b"", repr=False)
    secrets: Secrets = NO_SECRETS
    lock: str = ""
    concurrency: int = 0
    output_cap: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownRun:
    """A run as this node knows it."""

    run_id: str
    job_id: str
    epoch: int = 0
    accepted_at: float
    command: str = ""
    lock: str = ""
    phase: RunPhase = RunPhase.ACCEPTED
    started_at: float | None = None
    cancelling: bool = False
    exit: RunReport | None = None
    reported: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """The run is durable on this node and will be started, even if the agent dies now."""

    run: KnownRun


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicate:
    """This run is known already; nothing was done. What is known of it is worth sending again."""

    run: KnownRun


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The run was not taken."""

    reason: ExecutorRefusal
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The command runs."""

    run_id: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputGrown:
    """There is more to read. Several growths may be told as one."""

    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The run is over and its output complete in the spool."""

    report: RunReport


StartOutcome = Accepted | Duplicate | Refused
RunEvent = Started | OutputGrown | Finished
