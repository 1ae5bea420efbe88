"""Agents without processes, files or sockets: they take orders, "run" commands and report, as they are told to.

What a fake agent remembers (its spool) survives its streams and the controller, as a real agent's does, so restarts of
either side can be played. It obeys the rules that at-most-once rests on: a run it knows is never started again, a nonce
is used once, a run that was cancelled before its order came is void.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto

import trio

from lab.fake_links import FakeLink
from shovey_trio.core.jobs.events import (
    NodeAccepted,
    NodeKnows,
    NodeRefused,
    NodeReported,
    NodeStarted,
    ReportOutcome,
    RunEvent,
    RunReport,
)
from shovey_trio.core.jobs.model import LinkMode, OutputChunk, ProofKind, StreamName
from shovey_trio.core.trust.orders import NodeIdentity, Order, OrderKind, RefusalReason, judge_order
from shovey_trio.nursery.handles import PushedChunk
from shovey_trio.nursery.inbound import AgentInbox
from shovey_trio.nursery.ports import (
    Clock,
    SendClock,
    SendDetachOk,
    SendFollow,
    SendForget,
    SendOrder,
    SendReportDurable,
    ToAgent,
)
from shovey_trio.rpc.order_codec import parse_order

# How long an on-demand agent stays after it has nothing to do any more.
_LINGER = 1.0


class OnCancel(Enum):
    """What a fake agent does about a cancel order for a run that lives."""

    PROVE = auto()
    """Ends it and proves that it is gone."""
    CANNOT_PROVE = auto()
    """Ends it and cannot say that nothing is left."""
    IGNORE = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What a fake agent does with a start order; durations in seconds.

    Attributes:
        silent: do nothing at all, with any order.
        refuse: refuse it for this reason.
        accept_after: how long until it is accepted, and then until the command runs.
        run_for: how long the command runs; None: until it is cancelled.
        output: what the command writes, all at its start.
        outcome, exit_code, signal, proof: how it ends by itself.
        on_cancel: how it ends otherwise; here the agent's present script counts, not the one it started with.
    """

    silent: bool = False
    refuse: RefusalReason | None = None
    accept_after: float = 0.0
    run_for: float | None = 0.0
    output: tuple[tuple[StreamName, bytes], ...] = ()
    outcome: ReportOutcome = ReportOutcome.EXITED
    exit_code: int | None = 0
    signal: int | None = None
    proof: ProofKind | None = None
    on_cancel: OnCancel = OnCancel.PROVE


@dataclass(slots=True)
class SpooledRun:
    """What a fake agent knows of a run."""

    order: Order
    accepted_at: float
    knows: NodeKnows = NodeKnows.ACCEPTED
    started_at: float | None = None
    chunks: list[OutputChunk] = field(default_factory=list)
    report: RunReport | None = None
    cancelled: trio.Event = field(default_factory=trio.Event)

    @property
    def output_bytes(self) -> int:
        return sum(len(chunk.data) for chunk in self.chunks)

    def write(self, stream: StreamName, data: bytes, at: float) -> None:
        """Appends to the run's output."""
        offset = sum(len(chunk.data) for chunk in self.chunks if chunk.stream is stream)
        self.chunks.append(
            OutputChunk(stream=stream, position=self.output_bytes, stream_offset=offset, read_at=at, data=data)
        )


class FakeAgent:
    """One node's agent. ``serve`` must run; ``connect`` and ``disconnect`` open and break its stream.

    Attributes:
        inbox: the controller it talks to; another one after a restart.
        script: what it does with the next start order.
        spool: runs that were not confirmed yet.
        starts: how often each run's command was started: never more than once.
        orders: every order that reached it.
        heard: called with every message before it is handled.
        link: the open stream, if there is one.
        controller_ahead: of this agent's clock, as a welcome would say; a test that sets the controller's sets it.
    """

    def __init__(
        self,
        node: str,
        *,
        clock: Clock,
        organization: str = "default",
        instance: str = "instance-1",
        mode: LinkMode = LinkMode.ATTACHED,
        script: Script | None = None,
    ) -> None:
        self.node = node
        self.organization = organization
        self.instance = instance
        self.mode = mode
        self.script = script or Script()
        self.inbox: AgentInbox | None = None
        self.spool: dict[str, SpooledRun] = {}
        self.starts: Counter[str] = Counter()
        self.orders: list[Order] = []
        self.messages: list[ToAgent] = []
        self.heard: Callable[[ToAgent], None] = self.messages.append
        self.link: FakeLink | None = None
        self.controller_ahead = 0.0
        self._clock = clock
        self._nonces: set[bytes] = set()
        self._void: set[str] = set()
        self._accepting: set[str] = set()
        self._wish = trio.Event()
        self._told: dict[str, NodeKnows] = {}
        self._shipped: dict[str, int] = {}
        self._work = trio.Event()
        self._grew = trio.Event()
        self._left = False

    # -- what a test does

    def connect(self, inbox: AgentInbox | None = None) -> None:
        """Opens the stream, as soon as the one before has ended."""
        self.inbox = inbox or self.inbox
        self._wish.set()

    def disconnect(self) -> None:
        """Breaks the stream without a word; the command goes on."""
        self._wish = trio.Event()
        if self.link is not None:
            self.link.close("the network is gone")

    async def serve(self) -> None:
        """Lives until cancelled."""
        async with trio.open_nursery() as commands:
            while True:
                await self._wish.wait()
                self._wish = trio.Event()
                await self._stream(commands)

    def write(self, run_id: str, stream: StreamName, data: bytes) -> None:
        """Has a run's command write something."""
        self.spool[run_id].write(stream, data, self._clock.now())
        self._grew.set()

    def finish(self, run_id: str, report: RunReport) -> None:
        """Ends a run's command in this way."""
        run = self.spool[run_id]
        run.knows, run.report = NodeKnows.FINISHED, report
        self._work.set()

    def orders_of(self, kind: OrderKind) -> list[Order]:
        return [order for order in self.orders if order.kind is kind]

    # -- a stream

    async def _stream(self, commands: trio.Nursery) -> None:
        assert self.inbox is not None
        inbox = self.inbox
        link = FakeLink(organization=self.organization, node=self.node, agent_instance=self.instance, mode=self.mode)
        self.link, self._left, self._told = link, False, {}
        knows = {run_id: run.knows for run_id, run in self.spool.items()}
        try:
            with link.scope:
                positions = await inbox.positions(link, list(knows))
                self._shipped = {run_id: extent.position for run_id, extent in positions.items()}
                self._told = {run_id: known for run_id, known in knows.items() if known is not NodeKnows.FINISHED}
                await inbox.attached(link, knows)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._listen, link, commands)
                    nursery.start_soon(self._tell, inbox, link)
                    nursery.start_soon(self._ship, inbox)
                    if self.mode is LinkMode.ON_DEMAND:
                        nursery.start_soon(self._leave_when_idle, inbox, link)
        finally:
            self.link = None
            inbox.detached(link, asked=self._left)

    async def _listen(self, link: FakeLink, commands: trio.Nursery) -> None:
        async for message in link.received:
            self.heard(message)
            match message:
                case SendOrder(order=signed):
                    order = parse_order(signed.order)
                    assert isinstance(order, Order), order
                    self.orders.append(order)
                    if not self.script.silent:
                        await self._take(link, order, commands)
                case SendReportDurable(run_id=run_id):
                    self.spool.pop(run_id, None)
                case SendForget(run_id=run_id):
                    run = self.spool.get(run_id)
                    if run is not None and run.report is None:
                        run.cancelled.set()
                    else:
                        self.spool.pop(run_id, None)
                case SendClock(now=now):
                    self.controller_ahead = now - self._clock.now()
                case SendDetachOk():
                    return
                case SendFollow():
                    pass

    async def _take(self, link: FakeLink, order: Order, commands: trio.Nursery) -> None:
        run = self.spool.get(order.run_id)
        if order.run_id in self._accepting and order.kind is OrderKind.START:
            return
        if order.kind is OrderKind.CANCEL:
            await self._cancel(link, order, run)
        elif run is not None:
            self._told.pop(order.run_id, None)
            self._work.set()
        elif (reason := self._refusal(order)) is not None:
            await self._say(link, order.run_id, NodeRefused(kind=OrderKind.START, reason=reason))
        else:
            self._nonces.add(order.nonce)
            self._accepting.add(order.run_id)
            commands.start_soon(self._command, order, self.script)

    def _refusal(self, order: Order) -> RefusalReason | None:
        if order.run_id in self._void or order.nonce in self._nonces:
            return RefusalReason.REPLAYED
        now = self._clock.now() + self.controller_ahead
        identity = NodeIdentity(organization=self.organization, node=self.node, agent_instance=self.instance)
        return judge_order(order, identity=identity, controller_now=now, lowest_epoch=0) or self.script.refuse

    async def _cancel(self, link: FakeLink, order: Order, run: SpooledRun | None) -> None:
        if run is None:
            self._void.add(order.run_id)
            never = RunReport(run_id=order.run_id, outcome=ReportOutcome.CANCELLED, proof=ProofKind.NEVER_STARTED)
            await self._say(link, order.run_id, NodeReported(report=never))
        elif run.report is not None:
            self._told.pop(order.run_id, None)
            self._work.set()
        elif self.script.on_cancel is not OnCancel.IGNORE:
            run.cancelled.set()

    async def _say(self, link: FakeLink, run_id: str, event: RunEvent) -> None:
        assert self.inbox is not None
        await self.inbox.said(link, run_id, event)

    # -- telling

    async def _tell(self, inbox: AgentInbox, link: FakeLink) -> None:
        while True:
            self._work = trio.Event()
            for run_id, run in list(self.spool.items()):
                told = self._told.get(run_id)
                if told is run.knows:
                    continue
                self._told[run_id] = run.knows
                if run.report is not None:
                    await inbox.said(link, run_id, NodeReported(report=run.report))
                elif run.started_at is not None:
                    await inbox.said(link, run_id, NodeStarted(at=run.started_at))
                else:
                    await inbox.said(link, run_id, NodeAccepted(at=run.accepted_at))
            await self._work.wait()

    async def _ship(self, inbox: AgentInbox) -> None:
        """Pushes output and goes on from wherever each acknowledgement says, like the real shipper."""
        while True:
            self._grew = trio.Event()
            unshipped = [
                (run_id, chunk)
                for run_id, run in self.spool.items()
                for chunk in run.chunks
                if chunk.position >= self._shipped.get(run_id, 0)
            ]
            if not unshipped:
                await self._grew.wait()
            for run_id, chunk in unshipped:
                acknowledged = trio.Event()

                def acknowledge(position: int, run_id: str = run_id, acknowledged: trio.Event = acknowledged) -> None:
                    self._shipped[run_id] = position
                    acknowledged.set()

                pushed = PushedChunk(chunk=chunk, acknowledge=acknowledge)
                if await inbox.pushed(self.organization, self.node, run_id, pushed):
                    await acknowledged.wait()
                else:
                    self._shipped[run_id] = chunk.position + len(chunk.data)

    async def _leave_when_idle(self, inbox: AgentInbox, link: FakeLink) -> None:
        while True:
            await trio.sleep(_LINGER)
            if not self.spool and inbox.take_leave(link):
                self._left = True
                link.close("it has taken its leave")

    # -- commands

    async def _command(self, order: Order, script: Script) -> None:
        await trio.sleep(script.accept_after)
        self._accepting.discard(order.run_id)
        if order.run_id in self._void:
            return
        run = self.spool[order.run_id] = SpooledRun(order=order, accepted_at=self._clock.now())
        self._work.set()
        await trio.sleep(script.accept_after)
        if not run.cancelled.is_set():
            self.starts[order.run_id] += 1
            run.started_at, run.knows = self._clock.now(), NodeKnows.RUNNING
            for stream, data in script.output:
                run.write(stream, data, self._clock.now())
            self._work.set()
            self._grew.set()
            with trio.move_on_after(float("inf") if script.run_for is None else script.run_for):
                await run.cancelled.wait()
        if run.report is None:
            self.finish(order.run_id, self._report(order.run_id, run, script))

    def _report(self, run_id: str, run: SpooledRun, script: Script) -> RunReport:
        if run.cancelled.is_set():
            proof = ProofKind.EMPTY_SUBREAPER if self.script.on_cancel is OnCancel.PROVE else None
            return RunReport(
                run_id=run_id,
                outcome=ReportOutcome.CANCELLED,
                proof=proof,
                started_at=run.started_at,
                finished_at=self._clock.now(),
                output_bytes=run.output_bytes,
            )
        return RunReport(
            run_id=run_id,
            outcome=script.outcome,
            exit_code=script.exit_code,
            signal=script.signal,
            proof=script.proof,
            started_at=run.started_at,
            finished_at=self._clock.now(),
            output_bytes=run.output_bytes,
        )
