"""The live ends of jobs and runs: what other tasks hold of them.

A handle carries the run as its own task sees it and the channels into that task. Whoever posts waits for room, so
no event is dropped; a run that has ended refuses (``post`` returns False) and the caller goes to the store instead.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from shovey_trio.core.events import RunEvent
from shovey_trio.core.model import Job, OutputChunk, OutputExtent, Run
from shovey_trio.core.states import RunState

# Events waiting for one run. A node has a handful to say about a run; more means that the store is slow, and then the
# node's stream waits. 16 × ~200 bytes × 50,000 runs = 160 MB if every run of a full controller were stuck at once.
_INBOX = 16
# Chunks waiting for one run's output task: 4 × 64 KiB = 256 KiB, the most an agent may have unacknowledged per run.
_OUTPUT = 4


@dataclass(frozen=True, slots=True)
class Posted:
    """An event on its way to a run's task; ``done`` is set once it is handled and durable."""

    event: RunEvent
    done: trio.Event | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PushedChunk:
    """A chunk on its way to a run's output task.

    ``acknowledge`` is called exactly once, whatever becomes of the chunk, with the position up to which the run's
    output is durable; it must not block.
    """

    chunk: OutputChunk
    acknowledge: Callable[[int], None]


class RunHandle:
    """A live run."""

    def __init__(self, run: Run, *, moved: Callable[[RunState, RunState], None], extent: OutputExtent) -> None:
        self._run = run
        self._moved = moved
        self.extent = extent
        self._inbox_in, self.inbox = trio.open_memory_channel[Posted](_INBOX)
        self._output_in, self.output = trio.open_memory_channel[PushedChunk](_OUTPUT)
        # Set by the run's task: starts its output task, on the first chunk.
        self.start_output: Callable[[], None] | None = None

    @property
    def run(self) -> Run:
        """The run as its task sees it; it may be one commit ahead of the store."""
        return self._run

    @run.setter
    def run(self, run: Run) -> None:
        before, self._run = self._run, run
        if before.state is not run.state:
            self._moved(before.state, run.state)

    async def post(self, event: RunEvent, *, done: trio.Event | None = None) -> bool:
        """Hands an event to the run's task, waiting for room; False when the run has ended."""
        try:
            await self._inbox_in.send(Posted(event, done))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        return True

    async def post_durably(self, event: RunEvent) -> bool:
        """Like ``post``, and waits until what the event changed is durable (or the run has ended)."""
        done = trio.Event()
        if not await self.post(event, done=done):
            return False
        await done.wait()
        return True

    async def push(self, chunk: PushedChunk) -> bool:
        """Hands a chunk to the run's output task, waiting for room; False when the run has ended."""
        if self.start_output is not None:
            self.start_output()
            self.start_output = None
        try:
            await self._output_in.send(chunk)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        return True

    def close(self) -> None:
        """Refuses everything from now on; what waits unhandled is told so."""
        self._inbox_in.close()
        self._output_in.close()
        while True:
            try:
                posted = self.inbox.receive_nowait()
            except (trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
                break
            if posted.done is not None:
                posted.done.set()
        while True:
            try:
                self.output.receive_nowait().acknowledge(self.extent.position)
            except (trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
                break
        self.inbox.close()
        self.output.close()


@dataclass(slots=True)
class JobHandle:
    """A live job."""

    job: Job
    runs: dict[str, RunHandle] = field(default_factory=dict)
    """By node name; a run stays here until its job has ended, so that counts and cancels are complete."""
    counts: Counter[RunState] = field(default_factory=Counter)
    ended: trio.Event = field(default_factory=trio.Event)

    def moved(self, before: RunState, after: RunState) -> None:
        """Keeps ``counts`` true when a run changes its state."""
        self.counts[before] -= 1
        self.counts[after] += 1

    def acceptance_until(self, acceptance: float, spread_per_target: float) -> float:
        """Until when a start order of this job may be accepted, in unix seconds."""
        return self.job.created_at + acceptance + math.ceil(spread_per_target * self.job.run_total)
