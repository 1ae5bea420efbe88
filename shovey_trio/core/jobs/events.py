"""What can happen to a run, and what has to be done about it.

Events go into ``core.jobs.run_machine.handle``; effects come out of it and are carried out by ``nursery.run_scope``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from shovey_trio.core.jobs.model import ProofKind, ToldEnd
from shovey_trio.core.trust.orders import OrderKind


class ReportOutcome(StrEnum):
    """How a node says that a run ended."""

    EXITED = "exited"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    CRASHED = "crashed"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """The node's last word on a run."""

    run_id: str
    outcome: ReportOutcome
    exit_code: int | None = None
    signal: int | None = None
    cause: str = ""
    detail: str = ""
    proof: ProofKind | None = None
    started_at: float | None = None
    finished_at: float | None = None
    output_bytes: int = 0
    dropped_bytes: int = 0


# --- events ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderSent:
    """The start order, signed by ``key_id``, was handed over, to go ``route``'s way to the node."""

    route: str
    agent_instance: str
    expires_at: float
    key_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeAccepted:
    """The node has the order in its spool, durably."""

    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRefused:
    """The node will not act on an order."""

    kind: OrderKind
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStarted:
    """The command runs."""

    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReported:
    """The node says how the run ended, and all of its output is durable here."""

    report: RunReport


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSilent:
    """The node has not been heard since ``since`` and is down now."""

    since: float
    reason: str


class NodeKnows(StrEnum):
    """What a node that attaches says of a run it has not had confirmed."""

    NOTHING = "nothing"
    ACCEPTED = "accepted"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeAttached:
    """The node's agent opened a stream and listed the runs in its spool."""

    agent_instance: str
    knows: NodeKnows


@dataclass(frozen=True, slots=True)
class Released:
    """The job lets a held run go: from now on it is to be started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """The job will not release a held run."""

    cause: str
    detail: str = ""


BY_DEADLINE = "timeout"
"""Who asks for a cancel when the controller's own deadline does; no principal's label is like it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelAsked:
    """Somebody asked for the cancel of this run.

    Attributes:
        by: a principal's label, or ``BY_DEADLINE``.
        is_stored: the cancel of the whole job is durable, so that nothing depends on the run's own note of it.
    """

    by: str
    is_stored: bool = False


@dataclass(frozen=True, slots=True)
class AcceptanceOver:
    """The time in which the start order may be accepted is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeUnavailable:
    """It is certain that the node has no order and will get none."""

    cause: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ReconnectGraceOver:
    """The node was silent for longer than the reconnect grace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InternalFailure:
    """A bug or failure inside this run's own task."""

    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EndTold:
    """The node has told, once and without proof, how the run ended; the last of its output may still be on its way."""

    end: ToldEnd
    detail: str = ""


@dataclass(frozen=True, slots=True)
class OutputOver:
    """The output of a run whose end was told is complete, or what is missing of it was waited for long enough."""

    is_complete: bool = False


@dataclass(frozen=True, slots=True)
class NodeHeard:
    """The node gave a sign of life that does not say which runs it has."""


@dataclass(frozen=True, slots=True)
class OrderUnusable:
    """The node could not act on the start order as it was made; one that is made anew may do."""


STORE_RESTORED = "store_restored"
"""Why a run is unknown, or has ended as crashed: the store is an older copy and the node has not told its end."""


@dataclass(frozen=True, slots=True)
class StoreRestored:
    """The store is an older copy: whatever may happen to a run may have happened, its end included."""


@dataclass(frozen=True, slots=True)
class SecretsLost:
    """The node has no order, and none can be made: the secrets that belong to it are lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockSet:
    """The controller's clock was set: what was made by the old time cannot be compared with the new one.

    ``nonce`` is for an order that was never made, so that it is one of the new time.
    """

    nonce: bytes


@dataclass(frozen=True, slots=True)
class CancelUnproven:
    """The cancel of a run was sent and there is nothing more to wait for: the node proves no end."""


RunEvent = (
    OrderSent
    | NodeAccepted
    | NodeRefused
    | NodeStarted
    | NodeReported
    | NodeSilent
    | NodeAttached
    | Released
    | Skipped
    | CancelAsked
    | AcceptanceOver
    | NodeUnavailable
    | ReconnectGraceOver
    | InternalFailure
    | EndTold
    | OutputOver
    | NodeHeard
    | OrderUnusable
    | CancelUnproven
    | ClockSet
    | SecretsLost
    | StoreRestored
)


# --- effects --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SendStart:
    """Hand the start order to the node, again if need be, with the same nonce."""


@dataclass(frozen=True, slots=True)
class SendCancel:
    """Hand a cancel order to the node until it has proven the end."""


@dataclass(frozen=True, slots=True)
class ConfirmReport:
    """Tell the node that its report is durable, so that it clears its spool."""


@dataclass(frozen=True, slots=True)
class ForgetRun:
    """Tell the node that the run is void here."""


Effect = SendStart | SendCancel | ConfirmReport | ForgetRun
