"""Orders for old nodes: the whole signed order in a serf query, for as many nodes of a job as fit.

The runs of all jobs share one dispatcher, because gossip is paid per query (reference: serf.md, section 2). A run hands
its order in and waits; the dispatcher fills a query from what waits when its turn has come, and not before: a run that
is cancelled in between is in no query, and what was noted as sent was sent.

A schob does not know a start order that it had before: it runs the command again (reference: shovey.md, section 6,
fault 14). So *at most once* has to be kept on this side. A start is noted durably before it is sent, and it is sent
again only when serf has said, at the end of the query's time, that the node's agent never had it.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import structlog
import trio

from shovey_trio.core.errors import Code, Exit, SerfUnavailable, ShoveyError
from shovey_trio.core.jobs.model import Job
from shovey_trio.core.trust.orders import OrderKind
from shovey_trio.nursery.ports import Clock
from shovey_trio.nursery.settings import Timing
from shovey_trio.shovey.protocol.wire import cancel_fields, start_fields
from shovey_trio.shovey.route.ports import LegacyBell, LegacyDelivery, LegacyQuery, LegacySigner

_log = structlog.get_logger(__name__)
# How often nodes that serf does not see are looked for again, and how long a full serf is left alone.
_LOOK_AGAIN: Final = 1.0
# A signature costs 1 ms and serves all queries of a job for this long; far below any node's time slew.
_SIGNATURE_FRESH: Final = 60.0


class OrderTooLarge(ShoveyError):
    """The order does not fit a query, not even for this node alone; ``node`` names it."""

    reason, code, http, exit = "ORDER_TOO_LARGE", Code.INVALID_ARGUMENT, 400, Exit.USAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class LegacyOrder:
    """What a run wants sent.

    Attributes:
        going_out: called when the order's turn has come, with the key it is signed with. Returns whether it is still
            wanted, once that it was sent is durable.
    """

    job: Job
    node: str
    kind: OrderKind
    going_out: Callable[[str], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class _Batch:
    """What one payload serves."""

    kind: OrderKind
    job_id: str
    key_id: str


@dataclass(slots=True, kw_only=True)
class _Waiting:
    order: LegacyOrder
    settled: trio.Event = field(default_factory=trio.Event)
    delivery: LegacyDelivery | None = None
    error: ShoveyError | None = None


class LegacyDispatcher:
    """Sends orders to old nodes. ``serve`` must run."""

    def __init__(self, *, bell: LegacyBell, signer: LegacySigner, clock: Clock, timing: Timing) -> None:
        self.bell = bell
        self._signer = signer
        self._clock = clock
        self._timing = timing
        # Bounded by the number of live runs, twice: a start and a cancel of each.
        self._waiting: dict[_Batch, dict[str, _Waiting]] = {}
        self._signed: dict[_Batch, tuple[float, bytes]] = {}
        self._work = trio.Event()

    async def send(self, order: LegacyOrder) -> LegacyDelivery | None:
        """Waits for the order's turn and sends it; None when it was not wanted any more by then.

        Waits for as long as serf does not see the node. Cancelled before its turn, nothing is sent.

        Raises:
            OrderTooLarge: it will never fit.
            SerfUnavailable: the connection broke while it was sent; it may have been.
            ShoveyError: serf refused it; nobody got it.
        """
        job = order.job
        batch = _Batch(order.kind, job.id, self._signer.key_for(job.organization, order.node))
        waiting = _Waiting(order=order)
        self._waiting.setdefault(batch, {})[order.node] = waiting
        self._work.set()
        try:
            await waiting.settled.wait()
        finally:
            self._withdraw(batch, waiting)
        if waiting.error is not None:
            raise waiting.error
        return waiting.delivery

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
            if any(self._is_alive(entry.order) for entry in waiting.values())
        ]
        if not ready:
            return None
        batch = next((batch for batch in ready if batch.kind is OrderKind.CANCEL), ready[0])
        self._waiting[batch] = self._waiting.pop(batch)
        return batch

    async def _send_one(self, batch: _Batch) -> None:
        chosen: dict[str, _Waiting] = {}

        async def prepare() -> LegacyQuery | None:
            payload = self._payload(batch)
            while payload is not None and self._choose(batch, payload, chosen):
                await _announce(chosen, batch.key_id)
                if chosen:
                    organization = next(iter(chosen.values())).order.job.organization
                    return LegacyQuery(organization=organization, nodes=tuple(chosen), payload=payload)
            return None

        try:
            delivery = await self.bell.send(prepare)
        except ShoveyError as error:
            _log.warning("legacy.not_sent", job_id=batch.job_id, nodes=len(chosen), error=error.message)
            for entry in chosen.values():
                entry.error = error
                entry.settled.set()
            if isinstance(error, SerfUnavailable):
                await trio.sleep(_LOOK_AGAIN * random.uniform(1.0, 1.5))  # noqa: S311 - jitter, not a secret
            return
        if chosen:
            _log.info("legacy.sent", job_id=batch.job_id, kind=batch.kind.value, nodes=len(chosen))
        for entry in chosen.values():
            entry.delivery = delivery
            entry.settled.set()

    def _choose(self, batch: _Batch, payload: bytes, chosen: dict[str, _Waiting]) -> bool:
        """Takes the orders of one query out of what waits; False when there is none."""
        waiting = self._waiting.get(batch, {})
        alive = [node for node, entry in waiting.items() if self._is_alive(entry.order)]
        if not alive:
            return False
        packed = self.bell.pack(waiting[alive[0]].order.job.organization, alive, len(payload))
        for node in packed.never:
            entry = waiting.pop(node)
            entry.error = OrderTooLarge(f"the order does not fit a serf query beside the name {node!r}", node=node)
            entry.settled.set()
        chosen.update({node: waiting.pop(node) for node in packed.together})
        if not waiting:
            self._waiting.pop(batch, None)
        return bool(chosen) or bool(packed.never)

    def _payload(self, batch: _Batch) -> bytes | None:
        now = self._clock.now()
        signed = self._signed.get(batch)
        if signed is not None and now - signed[0] < _SIGNATURE_FRESH:
            return signed[1]
        self._signed = {key: value for key, value in self._signed.items() if now - value[0] < _SIGNATURE_FRESH}
        entry = next(iter(self._waiting.get(batch, {}).values()), None)
        if entry is None:
            return None
        job, time = entry.order.job, self._signer.time(now)
        if batch.kind is OrderKind.START:
            fields = start_fields(job_id=job.id, command=job.command, run_timeout=job.run_timeout, time=time)
        else:
            fields = cancel_fields(job_id=job.id, time=time)
        payload = self._signer.sign(job.organization, batch.key_id, fields)
        self._signed[batch] = now, payload
        return payload

    def _is_alive(self, order: LegacyOrder) -> bool:
        return self.bell.member_status(order.job.organization, order.node) == "alive"

    def _withdraw(self, batch: _Batch, entry: _Waiting) -> None:
        waiting = self._waiting.get(batch, {})
        if waiting.get(entry.order.node) is entry:
            del waiting[entry.order.node]
            if not waiting:
                del self._waiting[batch]


async def _announce(chosen: dict[str, _Waiting], key_id: str) -> None:
    """Asks every run whether its order may go; those whose may not are taken out. One commit for all."""

    async def ask(node: str, entry: _Waiting) -> None:
        if not await entry.order.going_out(key_id):
            del chosen[node]
            entry.settled.set()

    async with trio.open_nursery() as nursery:
        for node, entry in list(chosen.items()):
            nursery.start_soon(ask, node, entry)
