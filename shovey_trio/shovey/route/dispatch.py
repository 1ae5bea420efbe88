"""Orders for old nodes: the whole signed order in a serf query, for as many nodes of a job as fit.

The runs of all jobs share one dispatcher, because gossip is paid per query (reference: serf.md, section 2). A run hands
its order in and waits for what became of it. The dispatcher waits for its turn to send a query and fills it then, not
before, from what waits: a run that is cancelled in between is in no query, and what was noted as sent was sent.

A schob does not know a start order that it had before: it runs the command again (reference: shovey.md, section 6,
fault 14). So *at most once* has to be kept on this side. A start is noted durably before it is sent, and it is sent
again only when serf has said, at the end of the query's time, that the node's agent never had it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Final

import structlog
import trio

from shovey_trio.core.errors import Code, Exit, SerfUnavailable, ShoveyError
from shovey_trio.core.jobs.events import OrderSent
from shovey_trio.core.jobs.run_machine import handle
from shovey_trio.core.jobs.states import UNANSWERED_RUN_STATES
from shovey_trio.core.trust.orders import OrderKind
from shovey_trio.nursery.persist import write_latest
from shovey_trio.nursery.ports import Clock
from shovey_trio.nursery.route import RunAtWork
from shovey_trio.nursery.settings import Timing
from shovey_trio.shovey.kind import KIND
from shovey_trio.shovey.protocol.wire import DEFAULT_TIME_SLEW, cancel_fields, start_fields
from shovey_trio.shovey.route.bell import Delivery, SchobBell, SchobQuery
from shovey_trio.shovey.route.keyring import SchobKeyring

_log = structlog.get_logger(__name__)
# How often nodes that serf does not see are looked for again, and how long a full serf is left alone.
_LOOK_AGAIN: Final = 1.0
# A signature costs 1 ms and serves all queries of a job for this long; far below any node's time slew.
_SIGNATURE_FRESH: Final = 60.0


class OrderTooLarge(ShoveyError):
    """The order does not fit a query, not even for this node alone; ``node`` names it."""

    reason, code, http, exit = "ORDER_TOO_LARGE", Code.INVALID_ARGUMENT, 400, Exit.USAGE


@dataclass(frozen=True, slots=True)
class _Batch:
    """What one payload serves."""

    kind: OrderKind
    job_id: str
    key_id: str


@dataclass(slots=True, kw_only=True)
class _Order:
    """What a run wants sent; settled when it was, or never will be."""

    run: RunAtWork
    kind: OrderKind
    settled: trio.Event = field(default_factory=trio.Event)
    delivery: Delivery | None = None
    error: ShoveyError | None = None

    @property
    def node(self) -> str:
        return self.run.handle.run.node

    @property
    def organization(self) -> str:
        return self.run.handle.run.organization

    def is_wanted(self) -> bool:
        run = self.run.handle.run
        if self.kind is OrderKind.CANCEL:
            return not run.is_terminal
        return run.state in UNANSWERED_RUN_STATES and not run.cancelling

    def note_sent(self, key_id: str, now: float) -> None:
        """Notes in the run that its order goes out; to be made durable before it does."""
        live = self.run.handle
        sent = OrderSent(route=KIND, agent_instance="", expires_at=now + DEFAULT_TIME_SLEW, key_id=key_id)
        live.run = handle(live.run, sent, now).run


class SchobDispatcher:
    """Sends orders to old nodes. ``serve`` must run."""

    def __init__(self, *, bell: SchobBell, signer: SchobKeyring, clock: Clock, timing: Timing) -> None:
        self.bell = bell
        self._signer = signer
        self._clock = clock
        self._timing = timing
        # Bounded by the number of live runs, twice: a start and a cancel of each.
        self._waiting: dict[_Batch, dict[str, _Order]] = {}
        self._signed: dict[_Batch, tuple[float, bytes]] = {}
        self._work = trio.Event()

    async def send(self, run: RunAtWork, kind: OrderKind) -> Delivery | None:
        """Waits for the turn of a run's order and sends it; None when it was not wanted any more by then.

        Waits for as long as serf does not see the node. Cancelled before its turn, nothing is sent.

        Raises:
            OrderTooLarge: it will never fit.
            SerfUnavailable: the connection broke while it was sent; it may have been.
            ShoveyError: serf refused it; nobody got it.
        """
        order = _Order(run=run, kind=kind)
        batch = _Batch(kind, run.handle.run.job_id, self._signer.key_for(order.organization, order.node))
        self._waiting.setdefault(batch, {})[order.node] = order
        self._work.set()
        try:
            await order.settled.wait()
        finally:
            self._withdraw(batch, order)
        if order.error is not None:
            raise order.error
        return order.delivery

    async def serve(self) -> None:
        """Sends what waits, one query after the other, cancels first; until cancelled."""
        while True:
            batch = self._next_batch()
            if batch is None:
                with trio.move_on_after(_LOOK_AGAIN if self._waiting else float("inf")):
                    await self._work.wait()
                self._work = trio.Event()
                # The runs of a job come one after the other: let all of them in.
                await trio.sleep(self._timing.ring_linger)
                continue
            await self._send_one(batch)

    def _next_batch(self) -> _Batch | None:
        """The next that a living node waits for; jobs take turns, because what was served goes to the end."""
        ready = [
            batch
            for batch, waiting in self._waiting.items()
            if any(self._is_alive(order) for order in waiting.values())
        ]
        if not ready:
            return None
        batch = next((batch for batch in ready if batch.kind is OrderKind.CANCEL), ready[0])
        self._waiting[batch] = self._waiting.pop(batch)
        return batch

    async def _send_one(self, batch: _Batch) -> None:
        going: list[_Order] = []
        delivery: Delivery | None = None
        try:
            async with self.bell.turn() as send:
                payload = self._payload(batch)
                while payload is not None and not going and (chosen := self._choose(batch, payload)):
                    going = await self._note_sent(chosen, batch.key_id)
                if payload is not None and going:
                    nodes = tuple(order.node for order in going)
                    delivery = await send(SchobQuery(going[0].organization, nodes, payload))
        except ShoveyError as error:
            _log.warning("legacy.not_sent", job_id=batch.job_id, nodes=len(going), error=error.message)
            _settle(going, error=error)
            if isinstance(error, SerfUnavailable):
                await trio.sleep(_LOOK_AGAIN * random.uniform(1.0, 1.5))  # noqa: S311 - jitter, not a secret
            return
        if going:
            _log.info("legacy.sent", job_id=batch.job_id, kind=batch.kind.value, nodes=len(going))
        _settle(going, delivery=delivery)

    def _choose(self, batch: _Batch, payload: bytes) -> list[_Order]:
        """Takes the orders of one query out of what waits; those that will never fit are settled."""
        while alive := {node: order for node, order in self._waiting.get(batch, {}).items() if self._is_alive(order)}:
            packed = self.bell.pack(next(iter(alive.values())).organization, list(alive), len(payload))
            for node in packed.never:
                self._withdraw(batch, alive[node])
                message = f"the order does not fit a serf query beside the name {node!r}"
                _settle([alive[node]], error=OrderTooLarge(message, node=node))
            for node in packed.together:
                self._withdraw(batch, alive[node])
            if packed.together:
                return [alive[node] for node in packed.together]
        return []

    async def _note_sent(self, orders: list[_Order], key_id: str) -> list[_Order]:
        """Those that are still wanted once it is durable that they go out: one commit for all."""
        going = [order for order in orders if order.is_wanted()]
        async with trio.open_nursery() as nursery:
            for order in going:
                if order.kind is OrderKind.START:
                    order.note_sent(key_id, self._clock.now())
                    nursery.start_soon(write_latest, order.run.handle.get_run, order.run.services)
        still = [order for order in going if order.is_wanted()]
        _settle([order for order in orders if order not in still])
        return still

    def _payload(self, batch: _Batch) -> bytes | None:
        now = self._clock.now()
        signed = self._signed.get(batch)
        if signed is not None and 0 <= now - signed[0] < _SIGNATURE_FRESH:
            return signed[1]
        self._signed = {key: value for key, value in self._signed.items() if 0 <= now - value[0] < _SIGNATURE_FRESH}
        order = next(iter(self._waiting.get(batch, {}).values()), None)
        if order is None:
            return None
        job, time = order.run.job.job, self._signer.time(now)
        if batch.kind is OrderKind.START:
            fields = start_fields(job_id=job.id, command=job.command, run_timeout=job.run_timeout, time=time)
        else:
            fields = cancel_fields(job_id=job.id, time=time)
        payload = self._signer.sign(job.organization, batch.key_id, fields)
        self._signed[batch] = now, payload
        return payload

    def _is_alive(self, order: _Order) -> bool:
        return self.bell.member_status(order.organization, order.node) == "alive"

    def _withdraw(self, batch: _Batch, order: _Order) -> None:
        waiting = self._waiting.get(batch, {})
        if waiting.get(order.node) is order:
            del waiting[order.node]
            if not waiting:
                del self._waiting[batch]


def _settle(orders: list[_Order], *, delivery: Delivery | None = None, error: ShoveyError | None = None) -> None:
    for order in orders:
        order.delivery, order.error = delivery, error
        order.settled.set()
