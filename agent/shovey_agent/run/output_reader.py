"""Reads a run's output log by position, again and again, without starting from the beginning each time."""

from __future__ import annotations

import os
import threading
from bisect import bisect_right

from shovey_trio.core.jobs.model import OutputChunk
from shovey_trio.core.jobs.output import LogCursor, cut_chunks

# Room for three of the largest frames, so that every block read holds a whole one.
_BLOCK = 256 * 1024
# A frame boundary is remembered for every so many bytes of log: 64 of them for a log at the default cap.
_CHECKPOINT_SPACING = 1024 * 1024
_BEHIND_EVERYTHING = 1 << 62


class OutputReader:
    """One run's log. Methods block on the disk and may be called from any thread."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._checkpoints = [LogCursor()]
        self._latest = LogCursor()

    def read(self, position: int, limit: int) -> tuple[OutputChunk, ...]:
        """Returns up to ``limit`` bytes from ``position`` on; none when nothing is there yet."""
        chunks: list[OutputChunk] = []
        with self._lock:
            try:
                descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return ()
            try:
                self._collect(descriptor, chunks, position, limit)
            finally:
                os.close(descriptor)
        return tuple(chunks)

    def end(self) -> LogCursor:
        """Returns where the last complete frame of the log ends."""
        self.read(_BEHIND_EVERYTHING, 1)
        return self._latest

    def _collect(self, descriptor: int, chunks: list[OutputChunk], position: int, limit: int) -> None:
        cursor = self._cursor_before(position)
        while limit > 0:
            block = os.pread(descriptor, _BLOCK, cursor.file_offset)
            cut = cut_chunks(block, cursor, position=position, limit=limit)
            chunks.extend(cut.chunks)
            limit -= sum(len(chunk.data) for chunk in cut.chunks)
            cursor = cut.cursor
            self._remember(cursor)
            if cut.full or cut.damaged or len(block) < _BLOCK:
                return

    def _cursor_before(self, position: int) -> LogCursor:
        if self._latest.position <= position:
            return self._latest
        index = bisect_right(self._checkpoints, position, key=lambda cursor: cursor.position)
        return self._checkpoints[index - 1]

    def _remember(self, cursor: LogCursor) -> None:
        if cursor.file_offset > self._latest.file_offset:
            self._latest = cursor
        if cursor.file_offset >= self._checkpoints[-1].file_offset + _CHECKPOINT_SPACING:
            self._checkpoints.append(cursor)
