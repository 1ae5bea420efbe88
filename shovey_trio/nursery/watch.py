"""Watching jobs and following output: everything is read from the store, and the hub only says when to look.

So a watcher sees exactly what is durable, in commit order, each event once; a slow one costs no memory, because nothing
is buffered for it; and a resume token is nothing but the commit sequence of the last event.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import trio

from shovey_trio.core.errors import NotFound, OffsetOutOfRange
from shovey_trio.core.jobs.model import OutputChunk, StreamName
from shovey_trio.core.jobs.states import TERMINAL_RUN_STATES
from shovey_trio.core.shares import Shares
from shovey_trio.store.contract import (
    Committed,
    JobFeed,
    JobSnapshot,
    OutputStore,
    StoredEvent,
    StoredJob,
    StoredOutput,
)

# Events read at a time, some 128 × 1 KiB, beside the store's own bound on the output among them (256 KiB).
_PAGE = 128
# Bytes of output read at a time, per follower. With 2,000 watchers the pages of all of them are below 800 MiB.
_OUTPUT_PAGE = 256 * 1024

FollowChanged = Callable[[str, str | None, bool], None]
"""Called with job, node (None: every node of the job) and whether somebody follows now."""

_Topic = tuple[str, str | None]  # a job, and of one that only one run matters of, the node


class CommitHub:
    """Wakes whoever waits for a job's next commit, and knows which output somebody follows."""

    def __init__(
        self, *, max_watchers: int, per_caller: int | None = None, follow_changed: FollowChanged = lambda *_: None
    ) -> None:
        """Args:
        max_watchers: how many may watch or follow at a time.
        per_caller: how many of them may be one caller's; None for all.
        follow_changed: tells agents to flush more or less often.
        """
        self._watchers = Shares("watchers", total=max_watchers, each=per_caller or max_watchers)
        self._waiting: dict[_Topic, trio.Event] = {}
        self._last: dict[_Topic, int] = {}
        self._interest: Counter[_Topic] = Counter()
        self._runs_watched = 0
        self._followed: Counter[tuple[str, str | None]] = Counter()
        self._follow_changed = follow_changed

    def committed(self, commit: Committed) -> None:
        """Takes note of a commit; the store's listener."""
        for job_id, seq in commit.jobs.items():
            self._news((job_id, None), seq)
        if self._runs_watched:
            for job_id, node in commit.runs:
                self._news((job_id, node), commit.jobs[job_id])

    def _news(self, topic: _Topic, seq: int) -> None:
        if topic in self._interest:
            # Word of another process's commit may come late; it must not hide that of a later one.
            self._last[topic] = max(seq, self._last.get(topic, seq))
            event = self._waiting.pop(topic, None)
            if event is not None:
                event.set()

    @contextmanager
    def watching(self, job_id: str, node: str | None = None, *, who: str) -> Iterator[None]:
        """Keeps note of a job's commits meanwhile, or of those alone that say something of its run on ``node``.

        Args:
            who: whose place it takes.

        Raises:
            Overloaded: as many watchers as there may be, altogether or of ``who``.
        """
        topic = (job_id, node)
        with self._watchers.place(who):
            self._runs_watched += node is not None
            self._interest[topic] += 1
            try:
                yield
            finally:
                self._runs_watched -= node is not None
                self._interest[topic] -= 1
                if not self._interest[topic]:
                    del self._interest[topic]
                    self._last.pop(topic, None)
                    self._waiting.pop(topic, None)

    async def wait(self, job_id: str, seen: int, node: str | None = None) -> int:
        """Waits, inside ``watching`` of the same, for a commit after ``seen``; returns its sequence."""
        topic = (job_id, node)
        while self._last.get(topic, -1) <= seen:
            await self._waiting.setdefault(topic, trio.Event()).wait()
        return self._last[topic]

    def mark(self, job_id: str, node: str | None = None) -> int:
        """The last commit that was noted, to be passed to ``wait`` after the store was read."""
        return self._last.get((job_id, node), -1)

    @contextmanager
    def following(self, job_id: str, node: str | None) -> Iterator[None]:
        """Marks a run's output (or, with no node, all output of a job) as read live meanwhile."""
        key = (job_id, node)
        self._followed[key] += 1
        if self._followed[key] == 1:
            self._follow_changed(job_id, node, True)
        try:
            yield
        finally:
            self._followed[key] -= 1
            if not self._followed[key]:
                del self._followed[key]
                self._follow_changed(job_id, node, False)

    def is_followed(self, job_id: str, node: str) -> bool:
        """Whether somebody reads this run's output live."""
        return (job_id, None) in self._followed or (job_id, node) in self._followed


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchPosition:
    """What a watcher has been given, as commit sequences; the contents of a resume token.

    Attributes:
        changes: every change of the job and its runs up to this one, by snapshot or by event.
        output: every chunk of output up to this one. Behind ``changes`` while a fresh watcher is still being given the
            output that was there before its snapshot.
    """

    changes: int
    output: int

    def lacks(self, event: StoredEvent) -> bool:
        """Whether the watcher has still to be given ``event``."""
        return event.seq > (self.output if isinstance(event, StoredOutput) else self.changes)

    def after(self, event: StoredEvent) -> WatchPosition:
        """The position once everything up to ``event`` was given."""
        return WatchPosition(changes=max(self.changes, event.seq), output=max(self.output, event.seq))


async def watch_job(
    *,
    store: JobFeed,
    hub: CommitHub,
    who: str,
    organization: str,
    job_id: str,
    position: WatchPosition | None,
    include_output: bool,
    snapshot: Callable[[JobSnapshot, WatchPosition], Awaitable[None]],
    event: Callable[[StoredEvent, WatchPosition], Awaitable[None]],
) -> None:
    """Feeds a watcher until the job is terminal: a snapshot first (unless resumed), then event after event.

    With output, the chunks that were stored before the snapshot follow it, so that nothing is missing.

    Args:
        who: whose watcher's place it takes.
        position: what the watcher has been given; None to begin with a snapshot.
        snapshot, event: where they go, with the position after each; awaiting them is the watcher's backpressure.

    Raises:
        NotFound: no such job in this organization.
        HistoryGone: retention deleted what follows ``position``.
        Overloaded: too many watchers.
    """
    with hub.watching(job_id, who=who):
        picture = await store.snapshot_job(organization, job_id)
        if picture is None:
            raise NotFound(f"there is no job {job_id}", job_id=job_id)
        ended = picture.job.is_terminal
        if position is None:
            position = WatchPosition(changes=picture.seq, output=0 if include_output else picture.seq)
            await snapshot(picture, position)
        with hub.following(job_id, None) if include_output and not ended else nullcontext():
            read = min(position.changes, position.output)
            while True:
                mark = hub.mark(job_id)
                page = await store.read_events(job_id, after_seq=read, limit=_PAGE, include_output=include_output)
                for found in page:
                    read = found.seq
                    if position.lacks(found):
                        position = position.after(found)
                        await event(found, position)
                    # Not the end yet: what was committed behind the job's end (a late report) is still to be read.
                    ended = ended or (isinstance(found, StoredJob) and found.job.is_terminal)
                if page:
                    continue
                if ended:
                    return
                await hub.wait(job_id, mark)


async def follow_output(
    *,
    store: OutputStore,
    hub: CommitHub,
    who: str,
    organization: str,
    job_id: str,
    node: str,
    stream: StreamName | None,
    offset: int,
    follow: bool,
    chunk: Callable[[OutputChunk], Awaitable[None]],
) -> None:
    """Feeds a reader with a run's output from an offset on; with ``follow`` until the run is terminal.

    A terminal run's output is complete: a run ends only after all of its output is durable.

    Raises:
        NotFound: no such run in this organization.
        OffsetOutOfRange: the offset lies behind the end of a terminal run's output, or is negative.
        Overloaded: too many watchers.
    """
    if offset < 0:
        raise OffsetOutOfRange("an offset counts bytes from 0", offset=str(offset))
    with hub.watching(job_id, node, who=who):
        run = await store.get_run(organization, job_id, node)
        if run is None:
            raise NotFound(f"job {job_id} has no run on {node}", job_id=job_id, node=node)
        run_id = run.id
        extent = await store.output_extent(run_id)
        match stream:
            case None:
                end = extent.position
            case StreamName.STDOUT:
                end = extent.stdout_bytes
            case StreamName.STDERR:
                end = extent.stderr_bytes
        if offset > end and run.state in TERMINAL_RUN_STATES:
            raise OffsetOutOfRange(f"the output ends at {end}", offset=str(offset), end=str(end))
        with hub.following(job_id, node) if follow and not run.is_terminal else nullcontext():
            while True:
                mark = hub.mark(job_id, node)
                # One read says both: an end that was committed before the mark wakes nobody any more.
                page = await store.read_output_page(run_id, stream=stream, offset=offset, limit=_OUTPUT_PAGE)
                for piece in page.chunks:
                    await chunk(piece)
                    offset = (piece.position if stream is None else piece.stream_offset) + len(piece.data)
                if page.more:
                    continue
                if page.ended or not follow:
                    return
                await hub.wait(job_id, mark, node)
