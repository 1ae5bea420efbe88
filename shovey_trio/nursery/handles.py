"""The live ends of jobs and runs: what other tasks hold of them.

A handle carries the run as its own task sees it and the ways into that task. Whoever posts waits for room, so
no event is dropped; a run that has ended refuses (``post`` returns False) and the caller goes to the store instead.
Most runs have no output, so the channel for it is made with the first chunk.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import trio

from shovey_trio.core.jobs.command_input import NO_INPUT, NO_SECRETS, CommandInput
from shovey_trio.core.jobs.events import NodeAccepted, NodeStarted, RunEvent
from shovey_trio.core.jobs.model import Job, OutputChunk, OutputExtent, Run
from shovey_trio.core.jobs.states import RunState
from shovey_trio.nursery.mailbox import Mailbox

if TYPE_CHECKING:
    from shovey_trio.nursery.ports import NurseryClock
    from shovey_trio.nursery.route import NodeRoute

# Events waiting for one run. A node has a handful to say about a run; more means that the store is slow, and then the
# node's stream waits. 16 × ~200 bytes × 50,000 runs = 160 MB if every run of a full controller were stuck at once.
_INBOX = 16
# Seconds that a node's first words about a run may wait for those that follow: what is over at once is told in three
# messages, and is one wake-up and one write then. Nothing depends on hearing them sooner.
_LINGER = 0.03
# Chunks waiting for one run's output task: 4 × 64 KiB = 256 KiB, the most an agent may have unacknowledged per run.
_OUTPUT = 4


_FIRST_WORDS = (NodeAccepted, NodeStarted)
_MAY_NEED_AN_ORDER = (RunState.HELD, RunState.PENDING, RunState.DISPATCHED, RunState.UNKNOWN)


@dataclass(slots=True)
class Posted:
    """An event on its way to a run's task, and what became of it.

    Attributes:
        settled: set once the event is handled and what it changed is durable, or once it never will be.
        handled: which of the two.
    """

    event: RunEvent
    settled: trio.Event | None = None
    handled: bool = False

    def settle(self, *, handled: bool) -> None:
        """Tells whoever waits for it."""
        self.handled = handled
        if self.settled is not None:
            self.settled.set()


@dataclass(frozen=True, slots=True, kw_only=True)
class PushedChunk:
    """A chunk on its way to a run's output task.

    ``acknowledge`` is called exactly once, whatever becomes of the chunk, with the position up to which the run's
    output is durable; it must not block.
    """

    chunk: OutputChunk
    acknowledge: Callable[[int], None]


class RunHandle:
    """A live run.

    Attributes:
        extent: how much of its output is durable.
        inbox: what its task is to be told.
        start_output: called once, with the first chunk, while the run's task is there to store it.
        contact_lost: called, by whoever notices, when the node's stream is gone.
        route: how the node is reached, for as long as the run lives.
        memo: what the route keeps with the run, for itself alone.
        since: the moment, on trio's clock, from which what time decides next is counted: the node was found silent, or
            told an end whose output is still to come.
        began: the moment at which its node was first heard to have it, then to run it.
    """

    __slots__ = (
        "_acceptance",
        "_clock",
        "_counts",
        "_output",
        "_run",
        "began",
        "contact_lost",
        "extent",
        "inbox",
        "memo",
        "route",
        "since",
        "start_output",
    )

    def __init__(
        self, run: Run, *, route: NodeRoute, counts: Counter[RunState], extent: OutputExtent, clock: NurseryClock
    ) -> None:
        self._run = run
        self._clock = clock
        # What is stored says only which time it was.
        self.began = clock.moment_of(run.started_at or run.accepted_at or run.updated_at)
        self.since = self._begin_of_silence(run)
        self._acceptance: tuple[float, float] | None = None
        self.route = route
        self.memo: object = None
        self._counts = counts
        counts[run.state] += 1
        self.extent = extent
        self.inbox = Mailbox[Posted](_INBOX)
        self._output: tuple[trio.MemorySendChannel[PushedChunk], trio.MemoryReceiveChannel[PushedChunk]] | None = None
        self.start_output: Callable[[], None] | None = None
        self.contact_lost: Callable[[], None] | None = None

    @property
    def run(self) -> Run:
        """The run as its task sees it; it may be one commit ahead of the store."""
        return self._run

    @run.setter
    def run(self, run: Run) -> None:
        before, self._run = self._run, run
        if before.state is not run.state:
            self._counts[before.state] -= 1
            self._counts[run.state] += 1
        if _is_news(before.accepted_at, run.accepted_at) or _is_news(before.started_at, run.started_at):
            self.began = trio.current_time()
        if before.state is not run.state or before.held_end is not run.held_end:
            self.since = self._begin_of_silence(run)

    def moment_of_acceptance(self, until: float) -> float:
        """The moment of the time until which an order may be answered; the same however the clock is set meanwhile."""
        if self._acceptance is None or self._acceptance[0] != until:
            self._acceptance = until, trio.current_time() + until - self._clock.now()
        return self._acceptance[1]

    def _begin_of_silence(self, run: Run) -> float:
        told = run.updated_at if run.held_end is None else run.held_end.reported_at
        return self._clock.moment_of(run.unknown_since or told)

    def get_run(self) -> Run:
        """The run as it is when this is called; for what writes it later."""
        return self._run

    @property
    def is_closed(self) -> bool:
        """Whether the run's task is over, so that nothing can be posted."""
        return self.inbox.is_closed

    @property
    def output(self) -> trio.MemoryReceiveChannel[PushedChunk]:
        """The chunks that are pushed."""
        return self._output_channel()[1]

    @property
    def has_output(self) -> bool:
        """Whether a chunk was ever pushed."""
        return self._output is not None

    async def post(self, event: RunEvent) -> bool:
        """Hands an event to the run's task, waiting for room; False when the run has ended."""
        return await self.inbox.put(Posted(event), linger=_LINGER if isinstance(event, _FIRST_WORDS) else 0.0)

    def post_nowait(self, event: RunEvent) -> None:
        """Hands an event to the run's task even if there is no room: for one that comes once in a run's life."""
        self.inbox.put_nowait(Posted(event))

    async def post_durably(self, event: RunEvent) -> bool:
        """Like ``post``, and waits until what the event changed is durable; False when the run ended without it."""
        posted = Posted(event, trio.Event())
        if not await self.inbox.put(posted) or posted.settled is None:
            return False
        await posted.settled.wait()
        return posted.handled

    async def push(self, chunk: PushedChunk) -> bool:
        """Hands a chunk to the run's output task, waiting for room; False when the run has ended."""
        if self.is_closed:
            return False
        sending, _ = self._output_channel()
        if self.start_output is not None:
            start, self.start_output = self.start_output, None
            start()
        try:
            await sending.send(chunk)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        return True

    def close(self) -> None:
        """Refuses everything from now on; what waits unhandled is told so."""
        for posted in self.inbox.close():
            posted.settle(handled=False)
        if self._output is None:
            return
        sending, receiving = self._output
        sending.close()
        while True:
            try:
                receiving.receive_nowait().acknowledge(self.extent.position)
            except (trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
                break
        receiving.close()

    def _output_channel(self) -> tuple[trio.MemorySendChannel[PushedChunk], trio.MemoryReceiveChannel[PushedChunk]]:
        if self._output is None:
            self._output = trio.open_memory_channel[PushedChunk](_OUTPUT)
        return self._output


@dataclass(slots=True)
class JobHandle:
    """A live job.

    Attributes:
        job: as its task sees it; it may be one commit ahead of the store.
        stored: as it was last written.
        supervised_since: the moment, on trio's clock, when this nursery was opened: what went unheard before that is
            not the nodes' silence.
        taken_up: whether another process began the job, so that only its clock says how long ago.
        runs: by node name; a run stays here until its job has ended, so that counts and cancels are complete.
        counts: how many runs are in which state.
        input: what the command is given, with the secrets for as long as an order may still need them.
    """

    job: Job
    clock: NurseryClock
    input: CommandInput = NO_INPUT
    supervised_since: float = -math.inf
    taken_up: bool = False
    runs: dict[str, RunHandle] = field(default_factory=dict)
    counts: Counter[RunState] = field(default_factory=Counter)
    ended: trio.Event = field(default_factory=trio.Event)
    stored: Job = field(init=False)

    def __post_init__(self) -> None:
        self.stored = self.job

    def add(self, run: Run, extent: OutputExtent, route: NodeRoute) -> None:
        """Adds a run of the job, before it is supervised; one that has ended is only counted."""
        live = RunHandle(run, route=route, counts=self.counts, extent=extent, clock=self.clock)
        if run.is_terminal:
            live.close()
        self.runs[run.node] = live

    @property
    def has_lost_secrets(self) -> bool:
        """Whether an order cannot be made any more: another process was given the secrets, and it has ended."""
        return self.job.input.needs_secrets and not self.input.secrets

    def drop_secrets(self) -> None:
        """Forgets the secrets once no run can need an order any more; one that is unknown may have accepted none."""
        if self.input.secrets and not any(self.counts[state] for state in _MAY_NEED_AN_ORDER):
            self.input = replace(self.input, secrets=NO_SECRETS)


def _is_news(before: float | None, after: float | None) -> bool:
    return before is None and after is not None
