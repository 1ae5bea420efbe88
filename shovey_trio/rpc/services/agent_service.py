"""AgentService: enrolment, renewal, the control stream and the output stream of agents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import structlog
import trio
from google.protobuf.timestamp_pb2 import Timestamp

from shovey_trio.application.attempts import FailedAttempts
from shovey_trio.application.audit import AuditLog, origin
from shovey_trio.application.identities import Identities
from shovey_trio.core.addresses import peer_address
from shovey_trio.core.audit.records import AuditAction, AuditEntry, AuditOutcome
from shovey_trio.core.errors import (
    InvalidCertificateRequest,
    InvalidEnrollmentToken,
    InvalidRequest,
    NodeProtocolError,
    Overloaded,
    Unauthenticated,
)
from shovey_trio.core.jobs.events import (
    NodeAccepted,
    NodeKnows,
    NodeReported,
    NodeStarted,
    RunEvent,
    RunReport,
)
from shovey_trio.core.jobs.model import LinkMode, OutputExtent, Principal
from shovey_trio.core.trust.key_trust import PublishedKeys
from shovey_trio.nursery.credits import ByteCredits
from shovey_trio.nursery.handles import PushedChunk
from shovey_trio.nursery.inbound import AgentInbox
from shovey_trio.nursery.links import Links
from shovey_trio.nursery.ports import Clock, SendDetachOk, SendKeys
from shovey_trio.nursery.registry import NodeRegistry
from shovey_trio.nursery.whitelist_asks import WhitelistAnswer, WhitelistAsks
from shovey_trio.rpc import methods
from shovey_trio.rpc.bridge import Served, ServerCall, serve_bidi, serve_unary
from shovey_trio.rpc.convert import (
    chunk_value,
    keys_message,
    refusal_value,
    report_value,
    sane_time,
    seconds,
    timestamp,
)
from shovey_trio.rpc.services.agent_link import AttachCall, AttachedAgent
from shovey_trio.rpc.services.call_rate import CallRate
from shovey_trio.rpc.services.callers import caller
from shovey_trio.v1 import agent_service_pb2 as pb
from shovey_trio.v1 import node_pb2

_log = structlog.get_logger(__name__)

PushCall = ServerCall[pb.PushOutputRequest, pb.PushOutputResponse]

# How long an agent may take to say hello.
_HELLO = 20.0
# How long what was pushed may take to become durable after the agent has closed its half.
_LAST_ACKNOWLEDGEMENTS = 10.0
# What of a node's answer about its whitelist is shown.
_MAX_WORD = 1000
_MAX_CHUNK = 64 * 1024
# Seconds after which an agent that found every place taken may try again.
_COME_BACK = 60
# Agents that are on their way from the first word to the welcome. A whole fleet comes at once after a restart; those
# that are not taken in yet wait where they hold up no other call.
_ATTACHING = 64
# What a hello may hold; it is kept in memory for as long as the node is registered. As the agent's own configuration.
_MAX_TAGS = 64
_MAX_TAG = 256
# Runs in a spool that were not confirmed yet: at ten at a time, those of days without a controller.
_MAX_KNOWN_RUNS = 10_000

_KNOWS = {
    pb.KNOWN_RUN_STATE_ACCEPTED: NodeKnows.ACCEPTED,
    pb.KNOWN_RUN_STATE_RUNNING: NodeKnows.RUNNING,
    pb.KNOWN_RUN_STATE_FINISHED: NodeKnows.FINISHED,
}


class EnrollmentService:
    """Enroll and Renew, for the listener that asks for no certificate."""

    def __init__(
        self,
        *,
        identities: Identities,
        control_address: str,
        limiter: trio.CapacityLimiter,
        rate: CallRate,
        attempts: FailedAttempts,
    ) -> None:
        self._identities = identities
        self._control_address = control_address
        self._limiter = limiter
        self._slow = trio.CapacityLimiter(1)
        self._rate = rate
        self._attempts = attempts

    def serves(self) -> Sequence[Served]:
        return (serve_unary(methods.ENROLL, self._enroll), serve_unary(methods.RENEW, self._renew))

    async def _enroll(
        self, request: pb.EnrollRequest, call: ServerCall[pb.EnrollRequest, pb.EnrollResponse]
    ) -> pb.EnrollResponse:
        with self._attempt(call, f"node/{request.node}"):
            return await self._enroll_node(request, self._lane(call, f"node/{request.node}"))

    async def _enroll_node(self, request: pb.EnrollRequest, lane: trio.CapacityLimiter) -> pb.EnrollResponse:
        async with lane:
            enrolled = await self._identities.enroll(
                token=request.token,
                organization=request.organization,
                node=request.node,
                csr=request.csr,
                agent_instance=request.agent_instance,
            )
        return pb.EnrollResponse(
            certificate_chain=enrolled.certificate.chain,
            ca_certificates=enrolled.ca_certificates,
            signing_keys=keys_message(enrolled.keys),
            control_address=self._control_address,
        )

    async def _renew(
        self, request: pb.RenewRequest, call: ServerCall[pb.RenewRequest, pb.RenewResponse]
    ) -> pb.RenewResponse:
        # Not by the certificate's name: reading it is work that is refused together with the rest.
        with self._attempt(call, "renewal"):
            async with self._lane(call, "renewal"):
                issued = await self._identities.renew(
                    certificate=request.certificate, csr=request.csr, proof=request.proof, admit=self._rate.take
                )
        return pb.RenewResponse(certificate_chain=issued.chain, ca_certificates=self._identities.ca_certificates)

    def _lane(self, call: ServerCall[Any, Any], claimed: str) -> trio.CapacityLimiter:
        """Where the call waits for its turn: beside what fails all the time, or before it.

        Whoever has failed too often may still be right this time, or share the address of somebody who is.
        """
        return self._slow if self._attempts.wait(peer_address(call.peer), claimed) else self._limiter

    @contextmanager
    def _attempt(self, call: ServerCall[Any, Any], claimed: str) -> Iterator[None]:
        """Somebody who has proved nothing tries to. Only what is invalid counts, for its address and name."""
        address = peer_address(call.peer)
        try:
            yield
        except (InvalidRequest, InvalidEnrollmentToken, InvalidCertificateRequest, Unauthenticated) as error:
            self._attempts.check(address, claimed)
            self._attempts.failed(error, address, claimed)
            raise


class AgentService:
    """Attach and PushOutput, for nodes."""

    def __init__(
        self,
        *,
        inbox: AgentInbox,
        registry: NodeRegistry,
        links: Links,
        max_attached: int,
        max_run_output: int,
        identities: Identities,
        credits_: ByteCredits,
        clock: Clock,
        epoch: int,
        asks: WhitelistAsks,
        audit: AuditLog,
    ) -> None:
        self._audit = audit
        self._inbox = inbox
        self._registry = registry
        self._links = links
        self._max_attached = max_attached
        self._max_run_output = max_run_output
        self._identities = identities
        self._credits = credits_
        self._clock = clock
        self._epoch = epoch
        self._asks = asks

    def serves(self) -> Sequence[Served]:
        return (
            serve_bidi(methods.ATTACH, self._attach, opening=_ATTACHING),
            serve_bidi(methods.PUSH_OUTPUT, self._push_output),
        )

    # -- the control stream

    async def _attach(self, call: AttachCall) -> None:
        principal = caller()
        hello = await self._hello(call)
        # Before anything is waited for, or a slow store would count as a slow clock.
        offset = self._ahead(hello.agent_time) if hello.HasField("agent_time") else 0.0
        link, told = await self._welcome(call, principal, hello, offset)
        structlog.contextvars.bind_contextvars(node=link.node)  # in the context of this call's task alone
        knows = {run.run_id: _KNOWS[run.state] for run in hello.runs if run.state in _KNOWS}
        del hello  # it would be held for as long as the agent is attached
        asked = False
        try:
            with link.scope:
                # Nothing is awaited between this and the link's being known, or a revocation could be missed.
                self._tell_newer_keys(link, told)
                await self._inbox.attached(link, knows)
                asked = await self._listen(call, link, offset)
        finally:
            self._inbox.detached(link, asked=asked)

    async def _hello(self, call: AttachCall) -> pb.AttachHello:
        with trio.move_on_after(_HELLO):
            try:
                first = await call.receive()
            except trio.EndOfChannel:
                raise NodeProtocolError("the stream ended before a hello") from None
            if first.WhichOneof("message") == "hello":
                return first.hello
            raise NodeProtocolError("the first message of a stream must be a hello")
        raise NodeProtocolError(f"no hello within {_HELLO:g} s")

    async def _welcome(
        self, call: AttachCall, principal: Principal, hello: pb.AttachHello, offset: float
    ) -> tuple[AttachedAgent, PublishedKeys]:
        """The link with its welcome, and the keys that are told by it."""
        node = self._registry.get(principal.organization, principal.name)
        if node is None or node.agent_instance != hello.agent_instance:
            raise NodeProtocolError(
                "this agent's state directory is not the one that was enrolled; enrol it again",
                node=principal.name,
            )
        _check_size(hello, principal.name)
        if len(self._links) >= self._max_attached and self._links.get(principal.organization, principal.name) is None:
            raise Overloaded(
                f"{self._max_attached} agents are attached", limit="max_attached", retry_after_s=str(_COME_BACK)
            )
        # A node that has a stream has an agent of ours, whatever it says.
        on_demand = hello.link == node_pb2.LINK_MODE_ON_DEMAND
        mode = LinkMode.ON_DEMAND if on_demand else LinkMode.ATTACHED
        await self._identities.note_agent(
            node,
            link=mode,
            tags=dict(hello.tags),
            version=hello.agent_version,
            clock_skew=None if hello.clock_follows else offset,
        )
        link = AttachedAgent(
            call,
            organization=principal.organization,
            node=principal.name,
            agent_instance=hello.agent_instance,
            mode=mode,
            takes_clock=hello.takes_clock,
        )
        positions = await self._inbox.positions(link, [run.run_id for run in hello.runs])
        keys = self._identities.keys(principal.organization)
        link.queue(
            pb.AttachResponse(
                welcome=pb.AttachWelcome(
                    controller_time=timestamp(self._clock.now()),
                    epoch=self._epoch,
                    signing_keys=keys_message(keys),
                    positions=[_position(run_id, extent) for run_id, extent in positions.items()],
                    pending_orders=self._inbox.waiting_orders(link),
                )
            )
        )
        return link, keys

    def _tell_newer_keys(self, link: AttachedAgent, told: PublishedKeys) -> None:
        keys = self._identities.keys(link.organization)
        if keys != told:
            link.send_nowait(SendKeys(keys=keys))

    async def _listen(self, call: AttachCall, link: AttachedAgent, offset: float) -> bool:
        """Takes messages until the agent closes its half; whether it took its leave before."""
        leaving = False
        async for message in call:
            match message.WhichOneof("message"):
                case "accepted":
                    at = sane_time(seconds(message.accepted.at) - offset)
                    await self._said(link, message.accepted.run_id, NodeAccepted(at=at))
                case "started":
                    at = sane_time(seconds(message.started.at) - offset)
                    await self._said(link, message.started.run_id, NodeStarted(at=at))
                case "refused":
                    self._note_refused(link, message.refused)
                    await self._said(link, message.refused.run_id, refusal_value(message.refused))
                case "report":
                    report = report_value(message.report)
                    if report is not None:
                        told = _within(self._max_run_output, _by_our_clock(report, offset))
                        await self._said(link, report.run_id, NodeReported(report=told))
                case "whitelist_answer":
                    said = message.whitelist_answer
                    answer = WhitelistAnswer(
                        permitted=said.permitted, reason=said.reason[:_MAX_WORD], detail=said.detail[:_MAX_WORD]
                    )
                    self._asks.answered(link, said.ask_id, answer)
                case "clock":
                    offset = self._ahead(message.clock.agent_time)
                    await self._note_clock(link, offset)
                case "detach":
                    leaving = self._inbox.take_leave(link)
                    if leaving:
                        link.send_nowait(SendDetachOk())
                case other:
                    _log.warning("agent.unexpected_message", message=other)
        return leaving

    def _ahead(self, agent_time: Timestamp) -> float:
        """By how many seconds the node's clock is ahead of ours, if what it says was not long under way."""
        return seconds(agent_time) - self._clock.now()

    async def _note_clock(self, link: AttachedAgent, offset: float) -> None:
        node = self._registry.get(link.organization, link.node)
        if node is not None:
            await self._identities.note_agent(
                node, link=node.link, tags=dict(node.tags), version=node.agent_version, clock_skew=offset
            )

    def _note_refused(self, link: AttachedAgent, refused: pb.OrderRefused) -> None:
        """Its job's last record counts it in any case; this says which node, and when. Many of a kind are counted."""
        self._audit.note(
            AuditEntry(
                at=self._clock.now(),
                organization=link.organization,
                action=AuditAction.ORDER_REFUSED,
                outcome=AuditOutcome.REFUSED,
                # The node and where it is are details: a job refused by 10,000 of them is one kind.
                rule=refused.reason[:_MAX_TAG],
                subject=f"run/{refused.run_id[:64]}",
                detail={"node": link.node, "peer": origin().peer, "detail": refused.detail[:_MAX_TAG]},
            ),
            origin=f"{link.organization}/node/{link.node}",
        )

    async def _said(self, link: AttachedAgent, run_id: str, event: RunEvent) -> None:
        await self._inbox.said(link, run_id, event)

    # -- the output stream

    async def _push_output(self, call: PushCall) -> None:
        principal = caller()
        durable = _Acknowledgements()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(durable.send, call)
            async for request in call:
                await self._take_chunk(principal, request, durable)
            with trio.move_on_after(_LAST_ACKNOWLEDGEMENTS):
                await durable.wait_all_sent()
            nursery.cancel_scope.cancel(reason="everything is acknowledged")

    async def _take_chunk(
        self, principal: Principal, request: pb.PushOutputRequest, durable: _Acknowledgements
    ) -> None:
        chunk = chunk_value(request.chunk)
        if chunk is None or not 0 < len(chunk.data) <= _MAX_CHUNK:
            raise NodeProtocolError(f"a chunk has a stream, a position and 1 to {_MAX_CHUNK} bytes")
        durable.expect()
        room = self._max_run_output - chunk.position
        if room <= 0:
            durable.refuse(request.run_id)
            return
        chunk = replace(chunk, data=chunk.data[:room])
        credit = await self._credits.take(len(chunk.data))

        def acknowledge(position: int) -> None:
            self._credits.give_back(credit)
            durable.note(request.run_id, position)

        pushed = PushedChunk(chunk=chunk, acknowledge=acknowledge)
        try:
            taken = await self._inbox.pushed(principal.organization, principal.name, request.run_id, pushed)
        except BaseException:
            # It was not handed over, so nobody will acknowledge it.
            self._credits.give_back(credit)
            raise
        if not taken:
            self._credits.give_back(credit)
            durable.refuse(request.run_id)


class _Acknowledgements:
    """What one output stream has to tell its agent: the latest durable position per run, nothing older."""

    def __init__(self) -> None:
        # One entry per run with news; an agent has at most 1 MiB unacknowledged, so at most that many chunks.
        self._news: dict[str, pb.PushOutputResponse] = {}
        self._expected = 0
        self._work = trio.Event()
        self._settled = trio.Event()

    def expect(self) -> None:
        self._expected += 1

    def note(self, run_id: str, position: int) -> None:
        self._expected -= 1
        self._news[run_id] = pb.PushOutputResponse(run_id=run_id, durable_position=position)
        self._work.set()

    def refuse(self, run_id: str) -> None:
        self._expected -= 1
        self._news[run_id] = pb.PushOutputResponse(run_id=run_id, closed=True)
        self._work.set()

    async def send(self, call: PushCall) -> None:
        """Sends news until cancelled."""
        while True:
            while self._news:
                run_id = next(iter(self._news))
                await call.send(self._news.pop(run_id))
            self._settled.set()
            self._work = trio.Event()
            await self._work.wait()

    async def wait_all_sent(self) -> None:
        """Waits until every expected acknowledgement has been noted and sent."""
        while self._expected or self._news:
            await self._settled.wait()
            self._settled = trio.Event()


def _check_size(hello: pb.AttachHello, node: str) -> None:
    if len(hello.tags) > _MAX_TAGS:
        raise NodeProtocolError(f"a node may have {_MAX_TAGS} tags", node=node)
    words = [hello.agent_version, *hello.tags, *hello.tags.values()]
    if any(len(word) > _MAX_TAG for word in words):
        raise NodeProtocolError(f"a tag or version may have {_MAX_TAG} characters", node=node)
    if len(hello.runs) > _MAX_KNOWN_RUNS:
        raise NodeProtocolError(f"a node may have {_MAX_KNOWN_RUNS} unconfirmed runs", node=node)


def _position(run_id: str, extent: OutputExtent) -> pb.OutputPosition:
    return pb.OutputPosition(run_id=run_id, durable_position=extent.position)


def _within(limit: int, report: RunReport) -> RunReport:
    """The report with what the controller has not taken, because it was more than it takes of a run, as dropped."""
    over = max(report.output_bytes - limit, 0)
    return replace(report, output_bytes=report.output_bytes - over, dropped_bytes=report.dropped_bytes + over)


def _by_our_clock(report: RunReport, offset: float) -> RunReport:
    """The report with its times moved from the node's clock to the controller's, as measured at attach."""
    return replace(
        report,
        started_at=None if report.started_at is None else sane_time(report.started_at - offset),
        finished_at=None if report.finished_at is None else sane_time(report.finished_at - offset),
    )
