"""The serf side of the agent as a schob: orders in, heartbeats and the word of its start out.

A serf agent that is restarted is waited for; what was sent meanwhile is lost, as serf loses it, and the server's to
send again. Nothing that comes over the ring ends the agent.
"""

from __future__ import annotations

import time
from typing import Final

import structlog
import trio

from shovey_agent.run.executor import Executor
from shovey_agent.run.runs import Accepted, Duplicate, ExecutorRefusal, Refused
from shovey_agent.shovey.gate import LegacyGate, Refusal
from shovey_agent.shovey.reporter import RunReporter
from shovey_trio.core.errors import ShoveyError
from shovey_trio.core.serf.doorbell_plan import PlannedQuery
from shovey_trio.serf.link import ReceivedQuery, SerfLink
from shovey_trio.shovey.protocol.report import PutStatus, RunPut
from shovey_trio.shovey.protocol.wire import (
    HEARTBEAT_INTERVAL,
    ORDER_QUERY,
    START_EVENT,
    STATUS_QUERY,
    Action,
    ShoveyOrder,
    status_payload,
)

_log = structlog.get_logger(__name__)
#: What the link must subscribe to.
ORDER_EVENTS: Final = (f"query:{ORDER_QUERY}",)
_KILL_GRACE: Final = 10.0
_AGAIN: Final = 5.0
# Refusals being told at a time. Further ones are only logged: strangers on the ring decide how many there are.
_TELLING: Final = 8
_WORDS: Final = {
    ExecutorRefusal.BUSY: "too many commands are running",
    ExecutorRefusal.SPOOL_FULL: "no room for another run",
    ExecutorRefusal.SPOOL_ERROR: "the run could not be written down",
    ExecutorRefusal.INVALID_SPEC: "the order makes no sense here",
}


class LegacyListener:
    """Takes orders from serf and has them carried out; ``serve`` until cancelled."""

    def __init__(
        self, *, link: SerfLink, node: str, gate: LegacyGate, executor: Executor, reporter: RunReporter
    ) -> None:
        self._link = link
        self._node = node
        self._gate = gate
        self._executor = executor
        self._reporter = reporter
        self._telling = 0

    async def serve(self) -> None:
        """Listens until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._link.run)
            nursery.start_soon(self._announce)
            nursery.start_soon(self._heartbeat)
            async for event in self._link.events:
                if isinstance(event, ReceivedQuery) and event.name == ORDER_QUERY:
                    await self._take(nursery, event.payload)

    async def _take(self, nursery: trio.Nursery, payload: bytes) -> None:
        now = time.time()
        order = await self._gate.believe(payload, now=now)
        if order is None:
            return
        try:
            match order:
                case Refusal():
                    self._tell(nursery, order)
                case ShoveyOrder(action=Action.CANCEL):
                    await self._cancel(nursery, order, now)
                case _:
                    await self._start(nursery, order, payload, now)
        except OSError as error:
            _log.error("order.not_kept", run_id=order.run_id, error=error.strerror)
            put = RunPut(status=PutStatus.NACKED, error=f"the order could not be written down: {error.strerror}")
            self._tell(nursery, Refusal(run_id=order.run_id, put=put))

    async def _start(self, nursery: trio.Nursery, order: ShoveyOrder, payload: bytes, now: float) -> None:
        if self._executor.known_run(order.run_id) is not None:
            return  # its reports are on their way
        spec = await self._gate.admit(order, payload, now=now)
        if isinstance(spec, Refusal):
            self._tell(nursery, spec)
            return
        match await self._executor.start(spec):
            case Accepted(run=run):
                _log.info("run.accepted", run_id=run.run_id, command=order.command)
                self._reporter.note(run.run_id)
            case Duplicate(run=run):
                self._reporter.note(run.run_id)
            case Refused(reason=reason, detail=detail):
                error = f"{_WORDS[reason]}: {detail}"
                self._tell(nursery, Refusal(run_id=order.run_id, put=RunPut(status=PutStatus.NACKED, error=error)))

    async def _cancel(self, nursery: trio.Nursery, order: ShoveyOrder, now: float) -> None:
        if self._executor.known_run(order.run_id) is not None:
            _log.info("run.cancelling", run_id=order.run_id)
            await self._executor.cancel(order.run_id, grace=_KILL_GRACE)
        elif await self._gate.use_up(order, now=now):
            _log.info("run.voided", run_id=order.run_id)
            error = f"Job {order.run_id} on node {self._node} was cancelled before it started"
            put = RunPut(status=PutStatus.CANCELLED, error=error)
            self._tell(nursery, Refusal(run_id=order.run_id, put=put))

    def _tell(self, nursery: trio.Nursery, refusal: Refusal) -> None:
        if refusal.put is None:
            return
        if self._telling >= _TELLING:
            _log.warning("refusal.untold", run_id=refusal.run_id[:100], status=refusal.put.status.value)
            return
        self._telling += 1
        nursery.start_soon(self._say, refusal.run_id, refusal.put)

    async def _say(self, run_id: str, put: RunPut) -> None:
        try:
            await self._reporter.say(run_id, put)
        finally:
            self._telling -= 1

    async def _announce(self) -> None:
        """Says at the start, and after each restart of the serf agent, that this node is there."""
        connects = 0
        while True:
            connects = await self._link.wait_connected(after=connects)
            try:
                await self._link.announce(START_EVENT, self._node.encode(), coalesce=True)
            except ShoveyError as error:
                _log.warning("serf.announce_failed", error=error.message)

    async def _heartbeat(self) -> None:
        query = PlannedQuery(
            name=STATUS_QUERY,
            payload=status_payload(self._node),
            filter_nodes=(),
            targets=(),
            request_ack=False,
            timeout=0.0,  # the serf agent's own
            size=0,
        )
        while True:
            pause = HEARTBEAT_INTERVAL
            try:
                await self._link.ring(query)
            except ShoveyError as error:
                _log.warning("heartbeat.failed", error=error.message)
                pause = _AGAIN
            await trio.sleep(pause)
