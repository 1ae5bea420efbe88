"""The nouns: plain frozen values that every layer passes around.

Times are unix seconds (UTC) as ``float``; durations are seconds. Collections are tuples or read-only mappings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from shovey_trio.core.jobs.command_input import NO_RECORD, InputRecord
from shovey_trio.core.jobs.states import TERMINAL_JOB_STATES, TERMINAL_RUN_STATES, JobState, RunState


class ProofKind(StrEnum):
    """How the node knows that a run's whole process tree is gone."""

    NEVER_STARTED = "never_started"
    EMPTY_SUBREAPER = "empty_subreaper"
    EMPTY_CGROUP = "empty_cgroup"


class StreamName(StrEnum):
    """The command's two output streams."""

    STDOUT = "stdout"
    STDERR = "stderr"


class LinkMode(StrEnum):
    """Whether an agent keeps its stream open while it is idle."""

    ATTACHED = "attached"
    ON_DEMAND = "on-demand"


_AGENT_LINKS: Final = frozenset(LinkMode)


class Presence(StrEnum):
    """Whether a job may count on a node."""

    NEW = "new"
    UP = "up"
    DOWN = "down"


class Role(StrEnum):
    """What a principal may do in its organization; the table is in ``core.trust.authz``."""

    ADMIN = "admin"
    OPERATOR = "operator"
    VIEWER = "viewer"
    NODE = "node"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One command for a set of nodes."""

    id: str
    organization: str
    command: str
    quorum: str
    run_timeout: float
    kill_grace: float
    created_by: str
    created_at: float
    updated_at: float
    state: JobState = JobState.NEW
    cause: str = ""
    detail: str = ""
    finished_at: float | None = None
    cancel_requested: bool = False
    run_total: int = 0
    # What the command is given, as far as it may be stored and shown; set when the job is made.
    input: InputRecord = NO_RECORD
    # Of the controller's start that supervises it; nodes refuse orders of a lower one for the same run.
    epoch: int = 0
    # As of the last write of the job itself; a live job's counts are with its scope.
    run_counts: Mapping[RunState, int] = field(default_factory=dict)

    @property
    def is_terminal(self) -> bool:
        return self.state in TERMINAL_JOB_STATES


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldEnd:
    """How a run ended, as its node has told it."""

    state: RunState
    cause: str
    exit_code: int | None
    signal: int | None
    reported_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One node's part of a job."""

    id: str
    job_id: str
    organization: str
    node: str
    # The agent instance it is pinned to; None until the first order is sent.
    agent_instance: str | None = None
    state: RunState = RunState.PENDING
    cause: str = ""
    detail: str = ""
    exit_code: int | None = None
    signal: int | None = None
    created_at: float
    updated_at: float
    # From when on it may be started, and its times count; None while it is held.
    released_at: float | None = None
    dispatched_at: float | None = None
    accepted_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    unknown_since: float | None = None
    cancelling: bool = False
    cancel_reason: str = ""
    proof: ProofKind | None = None
    # The kind of a node that has no agent of ours, from the start; else the way its order went, once it was sent.
    route: str | None = None
    attempts: int = 0
    # 16 bytes, made with the run, so that every order for its start carries the same, restarts included.
    nonce: bytes
    # When the first order expires: an order that was never sent has none.
    order_expires_at: float | None = None
    dropped_bytes: int = 0
    # It ended before its node had sent the last of its output: some may be missing, and nobody knows how much.
    output_incomplete: bool = False
    # Of the key that signed the newest start order.
    key_id: str = ""
    # Told before the last of the output was here, and kept until it is: the run has not ended yet.
    held_end: ToldEnd | None = None
    # Told after the run had ended, and different from that end.
    late_report: ToldEnd | None = None

    @property
    def is_terminal(self) -> bool:
        return self.state in TERMINAL_RUN_STATES

    @property
    def times_from(self) -> float:
        """From when on its times count, in unix seconds: its release; of a held run, when it was made."""
        return self.created_at if self.released_at is None else self.released_at


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputExtent:
    """How much of a run's output is durable."""

    stdout_bytes: int = 0
    stderr_bytes: int = 0

    @property
    def position(self) -> int:
        return self.stdout_bytes + self.stderr_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputChunk:
    """A piece of a run's output.

    Attributes:
        position: bytes of both streams, in the order the node read them, that are kept before this chunk.
        stream_offset: bytes of this stream before this chunk.
        read_at: when the node read it, by the node's clock.
        dropped_before: bytes of both streams that were left out between the chunk before this one and this one.
    """

    stream: StreamName
    position: int
    stream_offset: int
    read_at: float
    data: bytes
    dropped_before: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A registered machine."""

    name: str
    organization: str
    agent_instance: str = ""
    agent_version: str = ""
    # A ``LinkMode``, or the kind of a node that has no agent of ours, by the word of the route that reaches it.
    link: str = LinkMode.ATTACHED
    tags: Mapping[str, str] = field(default_factory=dict)
    enrolled_at: float
    last_seen_at: float | None = None
    presence: Presence = Presence.NEW
    presence_since: float
    presence_reason: str = "enrolled"
    # Seconds that its clock is ahead of the controller's; None until it has attached.
    clock_skew: float | None = None

    @property
    def kind(self) -> str | None:
        """The kind of a node that has no agent of ours; None for one that has."""
        return None if self.link in _AGENT_LINKS else self.link


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """How far a run is: what a list of a job's runs shows."""

    node: str
    state: RunState
    updated_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """One entry of a node's presence history."""

    node: str
    organization: str
    presence: Presence
    since: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A principal that is a person or a program of theirs."""

    name: str
    organization: str
    role: Role
    created_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What narrows an operator: commands by pattern, nodes as ``core.trust.grants`` reads them."""

    organization: str
    user: str
    command: str
    nodes: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who is calling, as proven by the certificate.

    ``name`` is the user's or node's name; ``label`` is how it is stored and shown, such as ``user/admin``.
    """

    organization: str
    role: Role
    name: str

    @property
    def label(self) -> str:
        return f"{'node' if self.role is Role.NODE else 'user'}/{self.name}"
