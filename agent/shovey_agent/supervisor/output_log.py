"""The writing side of a run's output log: exact up to the cap, then the end of it.

The first ``head_cap`` bytes of log go to the file as they come. What comes after is kept in memory, the newest
``tail_cap`` bytes of it, and is written behind a gap frame when the run ends. A disk that fills up before the cap is
treated as if the cap were reached there: the command goes on, and what is lost is counted.

Imported by the supervisor process: the standard library's small modules alone.
"""

from __future__ import annotations

import os
from collections import deque

from shovey_trio.core.jobs.output_frames import HEADER, MAX_BODY, STDOUT, encode_gap, encode_header
from shovey_trio.observe import failpoints

# What a kept piece costs in memory beside its bytes; counted, or byte-by-byte output would fill the memory.
_PIECE_COST = 256


class OutputLog:
    """Appends to a log. It never raises for a disk that is full or broken: it counts what it could not keep.

    Attributes:
        stdout_bytes: what came of stdout, gaps included, once ``finish`` was called; before, what the log has of it.
        stderr_bytes: the same for stderr.
        dropped_stdout: bytes of stdout that are not in the log.
        dropped_stderr: the same for stderr.
    """

    def __init__(self, descriptor: int, *, head_cap: int, tail_cap: int) -> None:
        self.stdout_bytes = 0
        self.stderr_bytes = 0
        self.dropped_stdout = 0
        self.dropped_stderr = 0
        self._descriptor = descriptor
        self._size = 0
        self._head_cap = head_cap
        self._tail_cap = tail_cap
        self._head_ended = False
        self._tail: deque[tuple[int, float, bytearray]] = deque()
        self._tail_cost = 0

    def append(self, kind: int, data: bytes, read_at: float) -> None:
        """Takes at most 64 KiB that were read from one of the streams at ``read_at``."""
        if not self._head_ended:
            fits = self._size + HEADER.size + len(data) <= self._head_cap
            if fits and self._write(encode_header(kind, len(data), read_at), data):
                self._count(kind, len(data))
                return
            self._head_ended = True
        self._keep(kind, data, read_at)

    def finish(self, at: float) -> None:
        """Writes what was kept of the end, and makes the log durable as far as the disk allows."""
        if self._head_ended:
            self._write_tail(at)
        try:
            os.fsync(self._descriptor)
        except OSError:
            # An fsync that fails leaves pages that a read still sees and a power cut loses. The exit record's own
            # fsync fails next if the disk is gone, and then the run has no record and ends as lost, not as a lie.
            return

    def _write_tail(self, at: float) -> None:
        hole_stdout, hole_stderr = self.dropped_stdout, self.dropped_stderr
        # Together with the first piece or not at all: a log does not end in a gap.
        gap = encode_gap(stdout=hole_stdout, stderr=hole_stderr, read_at=at) if hole_stdout or hole_stderr else b""
        writable = True
        for kind, read_at, data in self._tail:
            writable = writable and self._write(gap, encode_header(kind, len(data), read_at), data)
            if not writable:
                self._drop(kind, len(data))
            elif gap:
                gap = b""
            self._count(kind, len(data))
        # Also where the disk was full and the hole has nothing behind it: what was written and what is missing add up.
        self.stdout_bytes += hole_stdout
        self.stderr_bytes += hole_stderr
        self._tail.clear()

    def _keep(self, kind: int, data: bytes, read_at: float) -> None:
        newest = self._tail[-1] if self._tail else None
        if newest is not None and newest[0] == kind and len(newest[2]) + len(data) <= MAX_BODY:
            newest[2].extend(data)
            self._tail_cost += len(data)
        else:
            self._tail.append((kind, read_at, bytearray(data)))
            self._tail_cost += len(data) + _PIECE_COST
        # The newest piece stays whatever the cap, so that a gap always has something behind it.
        while self._tail_cost > self._tail_cap and len(self._tail) > 1:
            oldest_kind, _, oldest = self._tail.popleft()
            self._tail_cost -= len(oldest) + _PIECE_COST
            self._drop(oldest_kind, len(oldest))

    def _write(self, *parts: bytes | bytearray) -> bool:
        """Appends whole frames or nothing at all."""
        wanted = sum(len(part) for part in parts)
        try:
            failpoints.passing("spool.append.before")
            written = os.writev(self._descriptor, parts)
            if written < wanted:
                rest = b"".join(parts)[written:]
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
        except OSError:
            # Frame boundaries are all that a reader has: half a frame must not stay.
            os.ftruncate(self._descriptor, self._size)
            return False
        self._size += wanted
        return True

    def _count(self, kind: int, length: int) -> None:
        if kind == STDOUT:
            self.stdout_bytes += length
        else:
            self.stderr_bytes += length

    def _drop(self, kind: int, length: int) -> None:
        if kind == STDOUT:
            self.dropped_stdout += length
        else:
            self.dropped_stderr += length
