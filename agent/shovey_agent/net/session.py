"""One stream to the controller: hello, orders down, news of runs up, output beside it.

What is told is derived from the runs as the executor knows them, not from a queue of messages: a new stream starts
with the list of all runs, and every change marks its run to be told about. So nothing can be lost between streams, and
telling twice is harmless.

Two streams of one agent overlap when the second takes over from the first (``link``). Its list of runs must not become
untrue before the controller has read it, so no order is taken between hello and welcome, on either of them: what came
on the first meanwhile waits, and is sent again on the second.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog
import trio

from shovey_agent.desk.desk import Declined, Ending, Known, OrderDesk, Taken, Verdict, Voided
from shovey_agent.net.shipper import OutputShipper
from shovey_agent.run.runs import KnownRun, RunPhase
from shovey_trio.core.errors import NodeProtocolError
from shovey_trio.core.jobs.events import ReportOutcome, RunReport
from shovey_trio.core.jobs.model import LinkMode, ProofKind
from shovey_trio.core.trust.key_trust import PublishedKeys
from shovey_trio.rpc import methods
from shovey_trio.rpc.bridge import Channel, ClientStream
from shovey_trio.rpc.convert import (
    LINKS,
    ORDER_KINDS,
    asked_input,
    keys_value,
    report_message,
    seconds,
    signed_order_value,
    timestamp,
)
from shovey_trio.v1 import agent_service_pb2 as pb

_log = structlog.get_logger(__name__)

AttachStream = ClientStream[pb.AttachRequest, pb.AttachResponse]

# How long the controller may take to answer a hello, or a wish to leave.
_ANSWER = 20.0
# Seconds by which this node's clock must be set for a word, and how often it is looked at: four wake-ups a minute.
_STEP = 1.0
_LOOK_AT_CLOCK = 15.0

_KNOWN = {
    RunPhase.ACCEPTED: pb.KNOWN_RUN_STATE_ACCEPTED,
    RunPhase.RUNNING: pb.KNOWN_RUN_STATE_RUNNING,
    RunPhase.FINISHED: pb.KNOWN_RUN_STATE_FINISHED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """What this agent says of itself when it attaches."""

    agent_instance: str
    agent_version: str
    link: LinkMode
    tags: dict[str, str]
    boot_id: str


class Session:
    """An attached agent's side of its stream. Use ``run`` once.

    ``taking`` is held while an order is taken, and from hello to welcome; sessions that may overlap share one.

    Attributes:
        welcomed: whether the controller has taken this agent.
        took_leave: whether the stream ended because there was nothing to do, in agreement with the controller.
    """

    def __init__(
        self,
        *,
        hello: Hello,
        desk: OrderDesk,
        new_keys: Callable[[PublishedKeys], Awaitable[None]],
        woken_by: str,
        taking: trio.Lock | None = None,
    ) -> None:
        self._taking = taking or trio.Lock()
        self._hello = hello
        self._desk = desk
        self._new_keys = new_keys
        self._woken_by = woken_by
        self._shipper = OutputShipper(desk)
        # What of each run was told on this stream: its furthest phase.
        self._told: dict[str, RunPhase] = {}
        self._news: dict[str, None] = {}
        self._outbox: list[pb.AttachRequest] = []
        self._work = trio.Event()
        self._activity = trio.Event()
        self._controller_offset = 0.0
        self._last_run_id = ""
        self._nothing_waits = False
        self.welcomed = False
        self.took_leave = False

    def note(self, run_id: str, *, output: bool = False) -> None:
        """Notes that there is something new to tell of a run."""
        if output:
            self._shipper.grew(run_id)
            return
        self._news[run_id] = None
        self._shipper.grew(run_id)
        self._work.set()

    async def run(self, channel: Channel, *, linger: float | None, started: Callable[[], None]) -> None:
        """Keeps the stream until it ends; with ``linger`` until there was nothing to do for so many seconds.

        An agent that learns that no order waits for it does not linger: most such calls are pulls, or doorbells that
        were for others.
        ``started`` is called once the controller has welcomed this agent.

        Raises:
            RpcError: the stream could not be opened, or ended.
            NodeProtocolError: what the controller says makes no sense.
            trio.TooSlowError: the controller did not answer the hello.
            trio.BrokenResourceError: the controller has ended the stream while something was being sent.
        """
        async with channel.stream(methods.ATTACH) as stream:
            with trio.fail_after(_ANSWER):
                async with self._taking:
                    await self._say_hello(stream)
                    self.welcomed = True
                    # Still under the lock: whatever this stream takes over from must not take another order.
                    started()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tell, stream)
                nursery.start_soon(self._watch_own_clock)
                nursery.start_soon(self._shipper.ship, channel)
                if linger is not None:
                    nursery.start_soon(self._leave_when_idle, 0.0 if self._nothing_waits else linger, linger)
                await self._listen(stream)
                nursery.cancel_scope.cancel(reason="the stream has ended")

    # -- up

    async def _say_hello(self, stream: AttachStream) -> None:
        runs = [run for run in self._desk.known_runs() if not run.reported]
        await stream.send(
            pb.AttachRequest(
                hello=pb.AttachHello(
                    agent_instance=self._hello.agent_instance,
                    agent_version=self._hello.agent_version,
                    link=LINKS.number(self._hello.link),
                    tags=self._hello.tags,
                    boot_id=self._hello.boot_id,
                    agent_time=timestamp(time.time()),
                    runs=[pb.KnownRun(run_id=run.run_id, state=_KNOWN[run.phase]) for run in runs],
                    woken_by_job=self._woken_by,
                    clock_follows=True,
                    takes_clock=True,
                )
            )
        )
        try:
            first = await stream.receive()
        except trio.EndOfChannel:
            raise NodeProtocolError("the controller has ended the stream without a welcome") from None
        if first.WhichOneof("message") != "welcome":
            raise NodeProtocolError("the controller's first message is no welcome")
        welcome = first.welcome
        self._controller_offset = seconds(welcome.controller_time) - trio.current_time()
        await stream.send(_agent_clock())
        self._nothing_waits = not welcome.pending_orders
        await self._new_keys(keys_value(welcome.signing_keys))
        durable = {position.run_id: position.durable_position for position in welcome.positions}
        for run in runs:
            # The hello has told how far it is; the report of a finished run follows.
            if run.phase is not RunPhase.FINISHED:
                self._told[run.run_id] = run.phase
            self._shipper.resume(run.run_id, durable.get(run.run_id, 0))
            self.note(run.run_id)

    async def _tell(self, stream: AttachStream) -> None:
        while True:
            while self._outbox or self._news:
                if self._outbox:
                    await stream.send(self._outbox.pop(0))
                    continue
                run_id = next(iter(self._news))
                del self._news[run_id]
                known = self._desk.known_run(run_id)
                if known is not None:
                    await self._tell_run(stream, known)
            self._work = trio.Event()
            await self._work.wait()

    async def _tell_run(self, stream: AttachStream, run: KnownRun) -> None:
        told = self._told.get(run.run_id)
        if told is run.phase or told is RunPhase.FINISHED:
            return
        self._told[run.run_id] = run.phase
        if run.phase is RunPhase.FINISHED and run.exit is not None:
            await stream.send(pb.AttachRequest(report=report_message(run.exit)))
        elif run.phase is RunPhase.RUNNING:
            at = timestamp(run.started_at)
            await stream.send(pb.AttachRequest(started=pb.RunStarted(run_id=run.run_id, at=at)))
        elif told is None:
            at = timestamp(run.accepted_at)
            await stream.send(pb.AttachRequest(accepted=pb.OrderAccepted(run_id=run.run_id, at=at)))

    def _say(self, message: pb.AttachRequest) -> None:
        self._outbox.append(message)
        self._work.set()

    async def _watch_own_clock(self) -> None:
        """Says what this node's clock shows when it was set: the controller moves the times of reports by it."""
        ahead = time.time() - trio.current_time()
        while True:
            await trio.sleep(_LOOK_AT_CLOCK)
            before, ahead = ahead, time.time() - trio.current_time()
            if abs(ahead - before) >= _STEP:
                _log.warning("clock.stepped", seconds=round(ahead - before, 3))
                self._say(_agent_clock())

    # -- down

    async def _listen(self, stream: AttachStream) -> None:
        async for message in stream:
            self._activity.set()
            if message.WhichOneof("message") == "detach_ok":
                self.took_leave = True
                return
            try:
                await self._take(message)
            except OSError as error:
                # The controller was told nothing, so it says the same again; by then there may be room on the disk.
                _log.error("disk.failed", message=message.WhichOneof("message"), error=str(error))

    async def _take(self, message: pb.AttachResponse) -> None:
        match message.WhichOneof("message"):
            case "order":
                await self._take_order(message)
            case "report_durable":
                await self._forget(message.report_durable.run_id)
            case "forget":
                await self._forget(message.forget.run_id)
            case "follow":
                await self._desk.follow(message.follow.run_id, followed=message.follow.followed)
            case "ask_whitelist":
                await self._answer(message.ask_whitelist)
            case "clock":
                self._controller_offset = seconds(message.clock.controller_time) - trio.current_time()
                self._say(_agent_clock())
            case "signing_keys":
                await self._new_keys(keys_value(message.signing_keys))
            case other:
                _log.warning("controller.unexpected_message", message=other)

    async def _take_order(self, message: pb.AttachResponse) -> None:
        async with self._taking:
            now = trio.current_time() + self._controller_offset
            verdict = await self._desk.take(signed_order_value(message.order), controller_now=now)
        self._last_run_id = _run_of(verdict) or self._last_run_id
        match verdict:
            case Taken(run=run):
                self.note(run.run_id)
            case Known(run=run):
                self._tell_again(run)
            case Voided(run_id=run_id):
                report = RunReport(
                    run_id=run_id,
                    outcome=ReportOutcome.CANCELLED,
                    proof=ProofKind.NEVER_STARTED,
                    finished_at=time.time(),
                )
                self._say(pb.AttachRequest(report=report_message(report)))
            case Declined():
                self._refuse(verdict)
            case Ending():
                pass  # how it ended will be told

    async def _answer(self, ask: pb.AskWhitelist) -> None:
        word = await self._desk.ask(ask.command, asked_input(ask))
        answer = pb.WhitelistAnswer(ask_id=ask.ask_id, permitted=word.permitted, reason=word.reason, detail=word.detail)
        self._say(pb.AttachRequest(whitelist_answer=answer))

    def _refuse(self, declined: Declined) -> None:
        if not declined.run_id:
            return  # nothing in it can be believed, not even which run it is about
        refused = pb.OrderRefused(
            run_id=declined.run_id,
            reason=declined.reason.value,
            detail=declined.detail,
            kind=ORDER_KINDS.number(declined.order_kind),
        )
        self._say(pb.AttachRequest(refused=refused))

    def _tell_again(self, run: KnownRun) -> None:
        self._told.pop(run.run_id, None)
        self.note(run.run_id)

    async def _forget(self, run_id: str) -> None:
        """Clears a run from the spool; one that still runs goes on until its own end, and is reported then.

        Only a signed order ends a command, and this is none.
        """
        if await self._desk.confirm(run_id):
            self._shipper.forget(run_id)
            self._told.pop(run_id, None)

    # -- leaving

    async def _leave_when_idle(self, first_linger: float, linger: float) -> None:
        patience = first_linger
        while True:
            self._activity = trio.Event()
            with trio.move_on_after(patience):
                await self._activity.wait()
                patience = linger
                continue
            patience = linger
            if not self._desk.known_runs() and not self._outbox:
                self._say(pb.AttachRequest(detach=pb.Detach(last_run_id=self._last_run_id)))
                with trio.move_on_after(_ANSWER):
                    await self._activity.wait()


def _agent_clock() -> pb.AttachRequest:
    return pb.AttachRequest(clock=pb.AgentClock(agent_time=timestamp(time.time())))


def _run_of(verdict: Verdict) -> str:
    match verdict:
        case Taken(run=run) | Known(run=run):
            return run.run_id
        case _:
            return verdict.run_id
