"""Everything that happens in a job, from its first byte of output on, however late one comes.

A watch tells what changes from its snapshot on. What a run had written before that is read beside it and put in
between, and what both have is given once, by position. One stream follows a job of any number of nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import trio

from shovey_trio.rpc.client.client import ShoveyClient
from shovey_trio.rpc.client.streams import LostContact
from shovey_trio.v1 import job_pb2
from shovey_trio.v1.job_service_pb2 import RunOutput, WatchJobResponse

# Runs whose earlier output is fetched at a time, and chunks (of at most 64 KiB) that wait for each: 4 MiB in all.
_READERS: Final = 16
_CHUNKS_AHEAD: Final = 4

Handle = Callable[[WatchJobResponse], None]


async def feed_job(
    client: ShoveyClient, job_id: str, handle: Handle, *, include_output: bool, on_lost: LostContact | None = None
) -> None:
    """Call ``handle`` with each event until the job is terminal and its output complete.

    Earlier output comes as output events without a resume token. Cancellation: stops between two events.

    Raises:
        Unreachable, RpcError: as ``ShoveyClient.watch_job``.
    """
    shown = Positions()
    async with client.watch_job(job_id, include_output=include_output, on_lost=on_lost) as events:
        async for event in events:
            match event.WhichOneof("event"):
                case "output":
                    fresh = shown.take(event.output.node, event.output.chunk)
                    if fresh is not None:
                        event.output.chunk.CopyFrom(fresh)
                        handle(event)
                case "snapshot":
                    handle(event)
                    if include_output and event.snapshot.complete:
                        await replay_output(client, job_id, await output_ends(client, job_id), handle, shown=shown)
                case _:
                    handle(event)


async def output_ends(client: ShoveyClient, job_id: str) -> dict[str, int]:
    """Return how many bytes of output each node of a job has by now.

    Asked for after the snapshot of a watch, so that what is not in here comes by the watch: runs there carry no counts.
    """
    return {run.node: run.stdout_bytes + run.stderr_bytes async for run in client.list_runs(job_id)}


class Positions:
    """How far each node's output has been given out."""

    def __init__(self) -> None:
        self._ends: dict[str, int] = {}

    def end(self, node: str) -> int:
        """Bytes of both streams that were given out."""
        return self._ends.get(node, 0)

    def take(self, node: str, chunk: job_pb2.OutputChunk) -> job_pb2.OutputChunk | None:
        """Return what of ``chunk`` is new, and count it as given out; None when nothing is."""
        known = self.end(node) - chunk.position
        if known >= len(chunk.data):
            return None
        self._ends[node] = chunk.position + len(chunk.data)
        if known <= 0:
            return chunk
        return job_pb2.OutputChunk(
            stream=chunk.stream,
            position=chunk.position + known,
            stream_offset=chunk.stream_offset + known,
            read_at=chunk.read_at,
            data=chunk.data[known:],  # what is missing before the chunk was told with its beginning
        )


async def replay_output(
    client: ShoveyClient, job_id: str, ends: Mapping[str, int], handle: Handle, *, shown: Positions
) -> None:
    """Call ``handle`` with the durable output of each node of ``ends``, one node after the other, by name.

    Args:
        ends: bytes that a node is known to have; nothing is asked for where all of it was shown.
    """
    nodes = sorted(node for node, end in ends.items() if end > shown.end(node))
    read_ahead = trio.Semaphore(_READERS)
    async with trio.open_nursery() as nursery:
        # A place for each node in order; what it will hold is fetched by at most ``_READERS`` tasks at a time.
        waiting, nodes_done = trio.open_memory_channel[tuple[str, trio.MemoryReceiveChannel[job_pb2.OutputChunk]]](
            _READERS
        )

        async def fetch_all() -> None:
            async with waiting:
                for node in nodes:
                    await read_ahead.acquire()
                    chunks_in, chunks_out = trio.open_memory_channel[job_pb2.OutputChunk](_CHUNKS_AHEAD)
                    nursery.start_soon(fetch, node, chunks_in)
                    await waiting.send((node, chunks_out))

        async def fetch(node: str, chunks: trio.MemorySendChannel[job_pb2.OutputChunk]) -> None:
            async with chunks, client.read_output(job_id, node, offset=shown.end(node)) as responses:
                async for response in responses:
                    await chunks.send(response.chunk)
            read_ahead.release()

        nursery.start_soon(fetch_all)
        async for node, chunks in nodes_done:
            async for chunk in chunks:
                fresh = shown.take(node, chunk)
                if fresh is not None:
                    handle(WatchJobResponse(output=RunOutput(node=node, chunk=fresh)))
