"""A run's output task: from the node's chunks to durable bytes, in order, without gaps or repeats.

The position of a chunk counts the bytes of both streams before it, in the order the node read them; it is the same
after a restart of the agent, because it is derived from the spool. So continuity is plain arithmetic here, and "where
do I go on" has one answer: the durable position, which every acknowledgement carries.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import trio

from shovey_trio.core.jobs.model import OutputChunk, OutputExtent, StreamName
from shovey_trio.nursery.handles import RunHandle
from shovey_trio.nursery.persist import until_stored
from shovey_trio.nursery.services import Services

# Chunks that one commit takes of one run, the size of the channel they come through.
_BATCH = 4


async def pump_output(handle: RunHandle, services: Services, grew: Callable[[], Awaitable[None]]) -> None:
    """Stores pushed chunks until cancelled; ``grew`` is awaited after each commit.

    Cancelling it loses nothing: what was not acknowledged is pushed again.
    """
    while True:
        batch = [await handle.output.receive()]
        while len(batch) < _BATCH:
            try:
                batch.append(handle.output.receive_nowait())
            except trio.WouldBlock:
                break
        try:
            fresh, extent = continue_output(handle.extent, [pushed.chunk for pushed in batch])
            if fresh:

                async def write(fresh: list[OutputChunk] = fresh) -> None:
                    run = handle.run
                    followed = services.hub.is_followed(run.job_id, run.node)
                    await services.store.append_output(run, fresh, followed=followed)

                await until_stored(write, longest_pause=services.timing.store_retry)
                handle.extent = extent
        finally:
            for pushed in batch:
                pushed.acknowledge(handle.extent.position)
        if fresh:
            await grew()


def continue_output(extent: OutputExtent, chunks: Sequence[OutputChunk]) -> tuple[list[OutputChunk], OutputExtent]:
    """Those chunks, cut where need be, that continue ``extent`` exactly, and the extent after them.

    A chunk from before is a repeat after a lost acknowledgement; one from beyond a gap is dropped: the acknowledgement
    tells the node where to go on.
    """
    fresh: list[OutputChunk] = []
    for chunk in chunks:
        known = extent.position - chunk.position
        if known < 0 or known >= len(chunk.data):
            continue
        data = chunk.data[known:]
        # The stream's own offset follows from the order of chunks; the node's figure is not needed and not believed.
        if chunk.stream is StreamName.STDOUT:
            offset, after = extent.stdout_bytes, replace(extent, stdout_bytes=extent.stdout_bytes + len(data))
        else:
            offset, after = extent.stderr_bytes, replace(extent, stderr_bytes=extent.stderr_bytes + len(data))
        dropped = 0 if known else chunk.dropped_before
        fresh.append(replace(chunk, position=extent.position, stream_offset=offset, data=data, dropped_before=dropped))
        extent = after
    return fresh, extent
