"""Shipping output: from the spool to the controller, each byte until it is durable there.

Positions are those of the spool, on the wire and in the store too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import trio

from shovey_agent.run.runs import KnownRun, RunPhase
from shovey_trio.core.jobs.model import OutputChunk
from shovey_trio.rpc import methods
from shovey_trio.rpc.bridge import Channel, ClientStream
from shovey_trio.rpc.convert import chunk_message
from shovey_trio.v1 import agent_service_pb2 as pb

PushStream = ClientStream[pb.PushOutputRequest, pb.PushOutputResponse]

# Unacknowledged bytes, as the contract bounds them (AgentService.PushOutput).
_WINDOW_PER_RUN = 256 * 1024
_WINDOW = 1024 * 1024
# After so many seconds without any progress, what is unacknowledged is sent again.
_STALLED = 15.0
# Seconds without output after which the stream is closed.
_IDLE = 10.0


class OutputSource(Protocol):
    """Where output is read from: the part of ``desk.OrderDesk`` that matters here."""

    def known_run(self, run_id: str) -> KnownRun | None:
        """See ``OrderDesk``."""

    async def read_output(self, run_id: str, position: int, limit: int) -> tuple[OutputChunk, ...]:
        """See ``OrderDesk``."""


@dataclass(slots=True)
class _Shipment:
    """How far one run's output has come."""

    sent: int
    durable: int
    closed: bool = False

    @property
    def in_flight(self) -> int:
        return self.sent - self.durable


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parcel:
    """Output that was read and is to be sent."""

    run_id: str
    shipment: _Shipment
    chunks: tuple[OutputChunk, ...]


class OutputShipper:
    """The output of all runs on one stream to the controller; made anew for each stream."""

    def __init__(self, source: OutputSource) -> None:
        self._source = source
        self._shipments: dict[str, _Shipment] = {}
        self._dirty: dict[str, None] = {}  # a set that keeps its order: runs take turns
        self._work = trio.Event()

    def resume(self, run_id: str, durable: int) -> None:
        """Continues a run behind what the controller has."""
        self._shipments[run_id] = _Shipment(sent=durable, durable=durable)
        self.grew(run_id)

    def grew(self, run_id: str) -> None:
        """Notes that a run has more output."""
        self._dirty[run_id] = None
        self._work.set()

    def forget(self, run_id: str) -> None:
        """Drops what is known of a run; its report is durable."""
        self._shipments.pop(run_id, None)
        self._dirty.pop(run_id, None)

    def is_shipped(self, run_id: str) -> bool:
        """Whether all output that is in the spool now is durable at the controller, or wanted no more."""
        shipment = self._shipments.get(run_id)
        known = self._source.known_run(run_id)
        if known is None or (shipment is not None and shipment.closed):
            return True
        if known.phase is not RunPhase.FINISHED or known.exit is None:
            return False
        kept = known.exit.output_bytes
        return kept == 0 or (shipment is not None and shipment.durable >= kept)

    async def ship(self, channel: Channel) -> None:
        """Ships until cancelled.

        The stream is opened when there is something to ship and closed when there was nothing for a while: a node that
        only waits for orders costs its controller one stream and not two.

        Raises:
            RpcError: the stream could not be opened, or has ended.
        """
        while True:
            parcel = await self._gather(patience=math.inf)
            assert parcel is not None
            async with channel.stream(methods.PUSH_OUTPUT) as stream, trio.open_nursery() as nursery:
                nursery.start_soon(self._receive, stream)
                while parcel is not None:
                    await self._send(stream, parcel)
                    parcel = await self._gather(patience=_IDLE)
                await stream.half_close()

    async def _gather(self, *, patience: float) -> _Parcel | None:
        """Waits for output that may be sent; None when nothing was in flight and none came for ``patience`` seconds."""
        while True:
            run_id = self._next()
            if run_id is None:
                if not await self._wait(patience):
                    return None
                continue
            shipment = self._shipments.setdefault(run_id, _Shipment(sent=0, durable=0))
            room = min(_WINDOW_PER_RUN - shipment.in_flight, _WINDOW - self._in_flight())
            chunks = await self._source.read_output(run_id, shipment.sent, room)
            if chunks:  # else it was taken from the dirty ones; growing puts it back
                return _Parcel(run_id=run_id, shipment=shipment, chunks=chunks)

    async def _send(self, stream: PushStream, parcel: _Parcel) -> None:
        shipment = parcel.shipment
        for chunk in parcel.chunks:
            shipment.sent = chunk.position + len(chunk.data)
            await stream.send(pb.PushOutputRequest(run_id=parcel.run_id, chunk=chunk_message(chunk)))
        self.grew(parcel.run_id)

    async def _receive(self, stream: PushStream) -> None:
        """Takes acknowledgements until the stream ends."""
        async for answer in stream:
            shipment = self._shipments.get(answer.run_id)
            if shipment is None:
                continue
            shipment.durable = max(shipment.durable, min(answer.durable_position, shipment.sent))
            shipment.closed = shipment.closed or answer.closed
            self._work.set()

    def _next(self) -> str | None:
        """The next run that has something to send and may, taken out of the dirty ones."""
        if self._in_flight() >= _WINDOW:
            return None
        for run_id in self._dirty:
            shipment = self._shipments.get(run_id)
            if shipment is None or (not shipment.closed and shipment.in_flight < _WINDOW_PER_RUN):
                del self._dirty[run_id]
                return run_id
        return None

    def _in_flight(self) -> int:
        return sum(shipment.in_flight for shipment in self._shipments.values() if not shipment.closed)

    async def _wait(self, patience: float) -> bool:
        """Waits for news; False when nothing is in flight and none came for ``patience`` seconds."""
        self._work = trio.Event()
        in_flight = bool(self._in_flight())
        with trio.move_on_after(_STALLED if in_flight else patience):
            await self._work.wait()
            return True
        if not in_flight:
            return False
        for run_id, shipment in self._shipments.items():
            if shipment.in_flight and not shipment.closed:
                shipment.sent = shipment.durable
                self.grew(run_id)
        return True
