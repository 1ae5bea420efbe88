"""Which pieces of a run's output have come, by their sequence numbers.

Numbers are counted per stream from 0. A piece is stored as one chunk each, so that of a run that is not remembered
(after a restart) the number to come is the number of stored chunks: exact, unless a piece was lost before and never
came, or was empty – then a repeat of the very last pieces would be taken for new ones.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

import trio

from shovey_trio.core.jobs.model import StreamName
from shovey_trio.store.contract import OutputStore

# Runs that are remembered, about 2 KiB each.
_REMEMBERED: Final = 10_000
# Holes remembered per stream. Of older ones what comes late counts as a repeat.
_HOLES: Final = 64
_PAGE: Final = 1024 * 1024


@dataclass(slots=True)
class Sequence:
    """One stream's numbers.

    Attributes:
        expected: behind the highest number taken.
        holes: ranges below it that have not come.
        ended: the piece that says it is the last has come.
    """

    expected: int = 0
    holes: list[range] = field(default_factory=list)
    ended: bool = False
    _moved: trio.Event = field(default_factory=trio.Event)

    def knows(self, seq: int) -> bool:
        """Whether a piece of this number was taken."""
        return seq < self.expected and not any(seq in hole for hole in self.holes)

    def take(self, seq: int, *, is_last: bool) -> None:
        """Notes that a piece is stored."""
        if seq >= self.expected:
            if seq > self.expected:
                self.holes = [*self.holes[-_HOLES + 1 :], range(self.expected, seq)]
            self.expected = seq + 1
        else:
            parts = [part for hole in self.holes for part in _without(hole, seq)]
            self.holes = [part for part in parts if part]
        self.ended = self.ended or is_last
        self._moved.set()
        self._moved = trio.Event()

    async def wait_turn(self, seq: int) -> None:
        """Waits until all pieces before it were taken; the caller's deadline decides how long a gap is waited for."""
        while seq > self.expected:
            await self._moved.wait()
        await trio.lowlevel.checkpoint()


@dataclass(slots=True)
class RunSequences:
    """Both streams of a run. ``lock`` is held while a piece is being stored: output has one order."""

    stdout: Sequence = field(default_factory=Sequence)
    stderr: Sequence = field(default_factory=Sequence)
    lock: trio.Lock = field(default_factory=trio.Lock)

    def of(self, stream: StreamName) -> Sequence:
        return self.stdout if stream is StreamName.STDOUT else self.stderr

    @property
    def is_complete(self) -> bool:
        """Whether both streams have ended and nothing before their ends is missing."""
        return all(sequence.ended and not sequence.holes for sequence in (self.stdout, self.stderr))


class SequenceBook:
    """The numbers of all runs that have reported lately."""

    def __init__(self, store: OutputStore) -> None:
        self._store = store
        self._runs: OrderedDict[str, RunSequences] = OrderedDict()
        self._loading = trio.Lock()

    async def of(self, run_id: str, *, is_silent: bool = False) -> RunSequences:
        """A run's numbers, from the store if they are not remembered.

        Args:
            is_silent: the run is known to have no output yet, so that the store need not be asked.

        Raises:
            StoreUnavailable: they cannot be read.
        """
        known = self._runs.get(run_id)
        if known is None and is_silent:
            known = self._remember(run_id, RunSequences())
        if known is not None:
            self._runs.move_to_end(run_id)
            return known
        async with self._loading:
            known = self._runs.get(run_id)
            if known is None:
                known = self._remember(run_id, await self._load(run_id))
            self._runs.move_to_end(run_id)
            return known

    def forget(self, run_id: str) -> None:
        """Has them read from the store the next time."""
        self._runs.pop(run_id, None)

    def _remember(self, run_id: str, sequences: RunSequences) -> RunSequences:
        known = self._runs.setdefault(run_id, sequences)
        while len(self._runs) > _REMEMBERED:
            self._runs.popitem(last=False)
        return known

    async def _load(self, run_id: str) -> RunSequences:
        found = RunSequences()
        if (await self._store.output_extent(run_id)).position == 0:
            return found
        for stream in StreamName:
            offset = 0
            while chunks := await self._store.read_output(run_id, stream=stream, offset=offset, limit=_PAGE):
                found.of(stream).expected += len(chunks)
                offset = chunks[-1].stream_offset + len(chunks[-1].data)
        return found


def _without(hole: range, seq: int) -> tuple[range, ...]:
    return (range(hole.start, seq), range(seq + 1, hole.stop)) if seq in hole else (hole,)
