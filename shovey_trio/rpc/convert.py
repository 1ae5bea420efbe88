"""Between the values of ``core`` and the messages of ``shovey_trio.v1``, both ways, in one place.

Enum members are matched by name, which a test holds complete; times are unix seconds on one side and Timestamp on the
other; absent messages are None.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, Generic, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from shovey_trio.core.errors import InvalidRequest
from shovey_trio.core.jobs.command_input import MAX_STDIN, CommandInput, InputRecord, Secrets
from shovey_trio.core.jobs.events import NodeRefused, ReportOutcome, RunReport
from shovey_trio.core.jobs.model import (
    Job,
    Node,
    NodeStatus,
    OutputChunk,
    OutputExtent,
    Presence,
    ProofKind,
    Role,
    Run,
    StreamName,
    ToldEnd,
    User,
)
from shovey_trio.core.jobs.states import JobState, RunState
from shovey_trio.core.jobs.targeting import AllNodes, Match, Names, Search, Selection, Tagged
from shovey_trio.core.trust.explain import Verdict
from shovey_trio.core.trust.key_sets import KeySet, KeyState, PublicKey
from shovey_trio.core.trust.key_trust import PublishedKeys
from shovey_trio.core.trust.orders import Order, OrderKind, SignedOrder
from shovey_trio.v1 import admin_service_pb2, agent_service_pb2, job_pb2, job_service_pb2, key_pb2, node_pb2, order_pb2

_E = TypeVar("_E", bound=Enum)

# The end of the year 9999. A Timestamp may say more; no calendar and no client of ours can show it.
_LATEST = 253_402_300_799.0
# Characters of a node's own words that are kept with a run; a cause is one word.
_MAX_CAUSE = 100
_MAX_DETAIL = 4096
# Seconds a Duration may hold here: a year. What is larger is a mistake, and arithmetic on it would overflow.
_LONGEST = 366 * 86400.0


# --- scalars --------------------------------------------------------------------------------------------------


def timestamp(at: float | None) -> Timestamp | None:
    """Unix seconds as a Timestamp, to the microsecond."""
    if at is None:
        return None
    micros = round(at * 1e6)
    return Timestamp(seconds=micros // 1_000_000, nanos=micros % 1_000_000 * 1000)


def seconds(at: Timestamp) -> float:
    """A Timestamp as unix seconds, moved to the nearest time that can be shown."""
    return sane_time(at.seconds + at.nanos / 1e9)


def sane_time(at: float) -> float:
    """A time that a peer has told, or the nearest one between 1970 and 9999."""
    return min(max(at, 0.0), _LATEST)


def duration(value: float) -> Duration:
    """Seconds as a Duration, to the microsecond."""
    result = Duration()
    result.FromMicroseconds(round(value * 1e6))  # gives a negative one the same sign in both fields
    return result


def duration_seconds(value: Duration, *, field: str) -> float:
    """A Duration as seconds.

    Raises:
        InvalidRequest: negative, or longer than a year.
    """
    result = value.seconds + value.nanos / 1e9
    if not 0 <= result <= _LONGEST:
        raise InvalidRequest(f"{field} must lie between 0 and 366 days", field=field)
    return result


class EnumMap(Generic[_E]):
    """A Python enum and a protobuf enum whose members have the same names, but for the prefix."""

    def __init__(self, wrapper: Any, enum: type[_E], prefix: str) -> None:
        self._numbers: dict[_E, int] = {member: wrapper.Value(prefix + member.name) for member in enum}
        self._members = {number: member for member, number in self._numbers.items()}

    def number(self, member: _E | None) -> Any:
        """The protobuf number; 0 (unspecified) for None."""
        return 0 if member is None else self._numbers[member]

    def member(self, number: int) -> _E | None:
        """The Python member; None for 0 and for numbers from the future."""
        return self._members.get(number)

    def members(self, numbers: Iterable[int]) -> frozenset[_E]:
        """The Python members of those numbers that have one."""
        return frozenset(self._members[number] for number in numbers if number in self._members)


class WordMap:
    """Plain words, and the protobuf enum with a member for each that clients know: ``on-demand``, ``X_ON_DEMAND``."""

    def __init__(self, wrapper: Any, prefix: str) -> None:
        self._numbers = {
            name.removeprefix(prefix).lower().replace("_", "-"): number for name, number in wrapper.items()
        }

    def number(self, word: str | None) -> Any:
        """The protobuf number; 0 (unspecified) for None and for a word that has none."""
        return 0 if word is None else self._numbers.get(word, 0)


JOB_STATES = EnumMap(job_pb2.JobState, JobState, "JOB_STATE_")
RUN_STATES = EnumMap(job_pb2.RunState, RunState, "RUN_STATE_")
PROOFS = EnumMap(job_pb2.ProofKind, ProofKind, "PROOF_KIND_")
ROUTES = WordMap(job_pb2.Route, "ROUTE_")
STREAMS = EnumMap(job_pb2.OutputStream, StreamName, "OUTPUT_STREAM_")
PRESENCES = EnumMap(node_pb2.NodePresence, Presence, "NODE_PRESENCE_")
LINKS = WordMap(node_pb2.LinkMode, "LINK_MODE_")
ORDER_KINDS = EnumMap(order_pb2.OrderKind, OrderKind, "ORDER_KIND_")
VERDICTS = EnumMap(job_service_pb2.Verdict, Verdict, "VERDICT_")
OUTCOMES = EnumMap(agent_service_pb2.ReportOutcome, ReportOutcome, "REPORT_OUTCOME_")


# --- jobs and runs --------------------------------------------------------------------------------------------


def job_message(job: Job, counts: Mapping[RunState, int] | None = None) -> job_pb2.Job:
    """A job, with these counts of its runs or those of its last write."""
    shown = job.run_counts if counts is None else counts
    return job_pb2.Job(
        id=job.id,
        organization=job.organization,
        command=job.command,
        state=JOB_STATES.number(job.state),
        cause=job.cause,
        detail=job.detail,
        quorum=job.quorum,
        run_timeout=duration(job.run_timeout),
        kill_grace=duration(job.kill_grace),
        created_by=job.created_by,
        created_at=timestamp(job.created_at),
        updated_at=timestamp(job.updated_at),
        finished_at=timestamp(job.finished_at),
        cancel_requested=job.cancel_requested,
        run_counts=[
            job_pb2.RunStateCount(state=RUN_STATES.number(state), count=shown[state])
            for state in RunState
            if shown.get(state)
        ],
        run_total=job.run_total,
        input=_input_message(job.input) if job.input else None,
    )


def _input_message(given: InputRecord) -> job_pb2.CommandInput:
    return job_pb2.CommandInput(
        args=given.args,
        env=given.env,
        user=given.user,
        stdin_bytes=given.stdin_bytes,
        secret_env=given.secret_env,
        secret_stdin=given.secret_stdin,
    )


def input_value(request: job_service_pb2.StartJobRequest) -> CommandInput:
    """What a request gives its command."""
    secret_stdin = request.stdin if request.secret_stdin else b""
    return CommandInput(
        args=dict(request.args),
        env=dict(request.env),
        stdin=b"" if secret_stdin else request.stdin,
        user=request.user,
        secrets=Secrets(env=dict(request.secret_env), stdin=secret_stdin),
    )


def asked_input(asked: job_service_pb2.ExplainRunRequest | agent_service_pb2.AskWhitelist) -> CommandInput:
    """The input of a question: of standard input only its length matters, and it is bounded here."""
    return CommandInput(
        args=dict(asked.args),
        env=dict(asked.env),
        stdin=bytes(min(max(asked.stdin_bytes, 0), MAX_STDIN)),
        user=asked.user,
    )


def run_message(run: Run, extent: OutputExtent | None = None) -> job_pb2.Run:
    """A run, with how much of its output is durable where that is known."""
    late = run.late_report
    return job_pb2.Run(
        id=run.id,
        job_id=run.job_id,
        node=run.node,
        state=RUN_STATES.number(run.state),
        cause=run.cause,
        detail=run.detail,
        exit_code=run.exit_code,
        signal=run.signal,
        created_at=timestamp(run.created_at),
        released_at=timestamp(run.released_at),
        dispatched_at=timestamp(run.dispatched_at),
        accepted_at=timestamp(run.accepted_at),
        started_at=timestamp(run.started_at),
        finished_at=timestamp(run.finished_at),
        updated_at=timestamp(run.updated_at),
        unknown_since=timestamp(run.unknown_since),
        cancelling=run.cancelling,
        proof=PROOFS.number(run.proof),
        route=ROUTES.number(run.route),
        attempts=run.attempts,
        stdout_bytes=extent.stdout_bytes if extent else 0,
        stderr_bytes=extent.stderr_bytes if extent else 0,
        dropped_bytes=run.dropped_bytes,
        output_incomplete=run.output_incomplete,
        late_report=None if late is None else _late_report_message(late),
    )


def _late_report_message(late: ToldEnd) -> job_pb2.LateReport:
    return job_pb2.LateReport(
        state=RUN_STATES.number(late.state),
        cause=late.cause,
        exit_code=late.exit_code,
        signal=late.signal,
        reported_at=timestamp(late.reported_at),
    )


def chunk_message(chunk: OutputChunk) -> job_pb2.OutputChunk:
    return job_pb2.OutputChunk(
        stream=STREAMS.number(chunk.stream),
        position=chunk.position,
        stream_offset=chunk.stream_offset,
        dropped_before=chunk.dropped_before,
        read_at=timestamp(chunk.read_at),
        data=chunk.data,
    )


def chunk_value(message: job_pb2.OutputChunk) -> OutputChunk | None:
    """A chunk, or None when it names no stream or a position that cannot be."""
    stream = STREAMS.member(message.stream)
    if stream is None or message.position < 0 or message.stream_offset < 0:
        return None
    return OutputChunk(
        stream=stream,
        position=message.position,
        stream_offset=message.stream_offset,
        dropped_before=max(message.dropped_before, 0),
        read_at=seconds(message.read_at),
        data=message.data,
    )


def selection_value(target: job_service_pb2.Target) -> Selection:
    """Which nodes a request is for.

    Raises:
        InvalidRequest: nothing is selected.
    """
    match target.WhichOneof("selection"):
        case "nodes":
            return Names(names=tuple(target.nodes.names))
        case "all" if target.all:
            return AllNodes()
        case "match" if target.match:
            return Match(pattern=target.match)
        case "tags" if target.tags.tags:
            return Tagged(tags=dict(target.tags.tags))
        case "search" if target.search:
            return Search(query=target.search)
        case _:
            raise InvalidRequest("name the nodes, or select all, a pattern, tags or a search", field="target")


# --- nodes and users ------------------------------------------------------------------------------------------


def node_message(node: Node, *, attached: bool, serf_status: str) -> node_pb2.Node:
    return node_pb2.Node(
        name=node.name,
        organization=node.organization,
        status=node_pb2.NodeStatus(
            presence=PRESENCES.number(node.presence),
            since=timestamp(node.presence_since),
            reason=node.presence_reason,
        ),
        tags=dict(node.tags),
        link=LINKS.number(node.link),
        agent_instance=node.agent_instance,
        agent_version=node.agent_version,
        enrolled_at=timestamp(node.enrolled_at),
        last_seen_at=timestamp(node.last_seen_at),
        attached=attached,
        serf_status=serf_status,
        clock_skew=None if node.clock_skew is None else duration(node.clock_skew),
    )


def node_status_message(status: NodeStatus) -> node_pb2.NodeStatus:
    return node_pb2.NodeStatus(
        presence=PRESENCES.number(status.presence), since=timestamp(status.since), reason=status.reason
    )


_ROLES = {
    Role.ADMIN: admin_service_pb2.ROLE_ADMIN,
    Role.OPERATOR: admin_service_pb2.ROLE_OPERATOR,
    Role.VIEWER: admin_service_pb2.ROLE_VIEWER,
}


def user_message(user: User) -> admin_service_pb2.User:
    return admin_service_pb2.User(name=user.name, role=_ROLES[user.role], created_at=timestamp(user.created_at))


def role_value(number: int) -> Role:
    """A user's role.

    Raises:
        InvalidRequest: unspecified or unknown.
    """
    for role, known in _ROLES.items():
        if known == number:
            return role
    raise InvalidRequest("role must be admin, operator or viewer", field="role")


# --- keys and orders ------------------------------------------------------------------------------------------


def keys_message(published: PublishedKeys) -> key_pb2.KeySet:
    return key_pb2.KeySet(
        organization=published.keys.organization,
        serial=published.keys.serial,
        keys=[
            key_pb2.SigningKey(
                key_id=key.key_id,
                public_key=key.public_bytes,
                created_at=timestamp(key.not_before),
                active=key.state is KeyState.ACTIVE,
                not_after=timestamp(key.not_after),
            )
            # Agents of older versions believe every key that is listed here.
            for key in published.keys.keys
            if key.state is not KeyState.REVOKED
        ],
        signed=published.signed,
        root_public_key=published.root_public_key,
    )


def keys_value(message: key_pb2.KeySet) -> PublishedKeys:
    """What a controller says of its keys; to be believed by the rules of ``core.trust.key_trust`` alone."""
    return PublishedKeys(
        keys=KeySet(
            organization=message.organization,
            serial=message.serial,
            keys=tuple(
                PublicKey(
                    public_bytes=key.public_key,
                    state=KeyState.ACTIVE if key.active else KeyState.RETIRING,
                    not_before=int(seconds(key.created_at)),
                    not_after=int(seconds(key.not_after)) if key.HasField("not_after") else None,
                )
                for key in message.keys
            ),
        ),
        signed=message.signed,
        root_public_key=message.root_public_key,
    )


def order_bytes(order: Order, sealed: bytes = b"") -> bytes:
    """The order's bytes, the ones that are signed. Deterministic, though only the signer relies on that.

    Args:
        order: all of it but its secrets, of which only the digest is taken.
        sealed: see ``seal_secrets``.
    """
    return order_pb2.Order(
        organization=order.organization,
        node=order.node,
        agent_instance=order.agent_instance,
        job_id=order.job_id,
        run_id=order.run_id,
        kind=ORDER_KINDS.number(order.kind),
        command=order.command,
        run_timeout=duration(order.run_timeout),
        kill_grace=duration(order.kill_grace),
        issued_at=timestamp(order.issued_at),
        expires_at=timestamp(order.expires_at),
        nonce=order.nonce,
        epoch=order.epoch,
        args=order.input.args,
        env=order.input.env,
        stdin=order.input.stdin,
        user=order.input.user,
        sealed_digest=hashlib.sha256(sealed).digest() if sealed else b"",
    ).SerializeToString(deterministic=True)


def seal_secrets(secrets: Secrets, salt: bytes) -> bytes:
    """What travels beside an order, whose signed bytes hold its digest; empty without secrets."""
    if not secrets:
        return b""
    return order_pb2.OrderSecrets(salt=salt, env=secrets.env, stdin=secrets.stdin).SerializeToString()


def signed_order_message(order: SignedOrder) -> order_pb2.SignedOrder:
    return order_pb2.SignedOrder(order=order.order, signature=order.signature, key_id=order.key_id, sealed=order.sealed)


def signed_order_value(message: order_pb2.SignedOrder) -> SignedOrder:
    return SignedOrder(order=message.order, signature=message.signature, key_id=message.key_id, sealed=message.sealed)


def report_message(report: RunReport) -> agent_service_pb2.RunReport:
    return agent_service_pb2.RunReport(
        run_id=report.run_id,
        outcome=OUTCOMES.number(report.outcome),
        exit_code=report.exit_code,
        signal=report.signal,
        cause=report.cause,
        # Names from a node's file system may have been no UTF-8.
        detail=report.detail.encode("utf-8", "replace").decode(),
        proof=PROOFS.number(report.proof),
        started_at=timestamp(report.started_at),
        finished_at=timestamp(report.finished_at),
        output_bytes=report.output_bytes,
        dropped_bytes=report.dropped_bytes,
    )


def refusal_value(message: agent_service_pb2.OrderRefused) -> NodeRefused:
    """A refusal; of an order of a kind that is not known here it is one of a start."""
    return NodeRefused(
        kind=ORDER_KINDS.member(message.kind) or OrderKind.START,
        reason=message.reason[:_MAX_CAUSE],
        detail=message.detail[:_MAX_DETAIL],
    )


def report_value(message: agent_service_pb2.RunReport) -> RunReport | None:
    """A report, or None when it does not say how the run ended."""
    outcome = OUTCOMES.member(message.outcome)
    if outcome is None:
        return None
    return RunReport(
        run_id=message.run_id,
        outcome=outcome,
        exit_code=message.exit_code if message.HasField("exit_code") else None,
        signal=message.signal if message.HasField("signal") else None,
        cause=message.cause[:_MAX_CAUSE],
        detail=message.detail[:_MAX_DETAIL],
        proof=PROOFS.member(message.proof),
        started_at=seconds(message.started_at) if message.HasField("started_at") else None,
        finished_at=seconds(message.finished_at) if message.HasField("finished_at") else None,
        output_bytes=max(message.output_bytes, 0),
        dropped_bytes=max(message.dropped_bytes, 0),
    )
