"""A simulated run: what its command pretends to do, and its output on its way to the controller."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import trio

from shovey_trio.core.jobs.model import OutputChunk, StreamName
from shovey_trio.rpc import methods
from shovey_trio.rpc.bridge import Channel, ClientStream
from shovey_trio.rpc.convert import chunk_message
from shovey_trio.v1 import agent_service_pb2 as pb

PushStream = ClientStream[pb.PushOutputRequest, pb.PushOutputResponse]

# What the contract lets an agent have unacknowledged of one run.
_WINDOW = 256 * 1024
_CHUNK = bytes(64 * 1024)
_LINE = b"a line of output, as short as most\n"
# How often an agent flushes what nobody follows.
_FLUSH = 1.0


class Kind(StrEnum):
    """What a simulated command does."""

    EXIT = "exit"
    WAIT = "wait"
    LINES = "lines"
    FLOOD = "flood"


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """A simulated command.

    Attributes:
        kind: ``exit`` ends at once, ``wait`` when it is cancelled, ``lines`` after ``seconds`` of ``per_second`` lines
            each, ``flood`` after ``size`` bytes in chunks of 64 KiB.
    """

    kind: Kind
    seconds: float = 0.0
    per_second: int = 10
    size: int = 0


@dataclass(slots=True)
class SimulatedRun:
    """How far a run's output is durable, and how to end it."""

    run_id: str
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    sent: int = 0
    durable: int = 0
    progress: trio.Event = field(default_factory=trio.Event)


class OutputPusher:
    """The output of all runs of one session. Its stream is opened by the first chunk."""

    def __init__(self, channel: Channel, nursery: trio.Nursery, runs: Mapping[str, SimulatedRun]) -> None:
        self._channel = channel
        self._nursery = nursery
        self._runs = runs
        self._stream: PushStream | None = None
        self._pushing = trio.Lock()

    async def perform(self, run: SimulatedRun, behaviour: Behaviour) -> None:
        """Does what the command does, until it has ended; its output may not be durable yet.

        Raises:
            RpcError: the stream has ended.
        """
        match behaviour.kind:
            case Kind.EXIT:
                await trio.lowlevel.checkpoint()
            case Kind.WAIT:
                await trio.sleep_forever()
            case Kind.LINES:
                for _ in range(round(behaviour.seconds / _FLUSH)):
                    await trio.sleep(_FLUSH)
                    await self._push(run, _LINE * round(behaviour.per_second * _FLUSH))
            case Kind.FLOOD:
                while run.sent < behaviour.size:
                    await self._push(run, _CHUNK[: behaviour.size - run.sent])

    async def _push(self, run: SimulatedRun, data: bytes) -> None:
        while run.sent + len(data) - run.durable > _WINDOW:
            run.progress = trio.Event()
            await run.progress.wait()
        chunk = OutputChunk(
            stream=StreamName.STDOUT, position=run.sent, stream_offset=run.sent, read_at=time.time(), data=data
        )
        run.sent += len(data)
        async with self._pushing:
            if self._stream is None:
                self._stream = await self._nursery.start(self._serve)
            await self._stream.send(pb.PushOutputRequest(run_id=run.run_id, chunk=chunk_message(chunk)))

    async def _serve(self, task_status: trio.TaskStatus[PushStream] = trio.TASK_STATUS_IGNORED) -> None:
        async with self._channel.stream(methods.PUSH_OUTPUT) as stream:
            task_status.started(stream)
            async for answer in stream:
                run = self._runs.get(answer.run_id)
                if run is not None:
                    run.durable = max(run.durable, answer.durable_position)
                    run.progress.set()
