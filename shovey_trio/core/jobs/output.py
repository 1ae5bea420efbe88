"""Reading a run's output log: from frames to chunks that can be sent.

Positions count the bytes of both streams that are in the log, in the order the node read them, from 0. A position
means the same before and after a restart of the agent, however the chunks were cut. What the cap left out is in none
of them: the chunk behind such a hole says how much it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from shovey_trio.core.jobs.model import OutputChunk, StreamName
from shovey_trio.core.jobs.output_frames import GAP, GAP_BODY, HEADER, MAX_BODY, STDERR, STDOUT

# Frames of one stream read this close together travel as one chunk: a reader cannot tell them apart by eye, and
# a command that writes byte by byte would otherwise cost a message per byte.
MERGE_WINDOW_S = 0.1

_STREAMS = {STDOUT: StreamName.STDOUT, STDERR: StreamName.STDERR}


@dataclass(frozen=True, slots=True, kw_only=True)
class LogCursor:
    """A frame boundary of a log: where it is in the file and what came before it.

    Attributes:
        dropped_bytes: what all holes before it left out.
        dropped_before: what the hole that ends here left out.
    """

    file_offset: int = 0
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    dropped_bytes: int = 0
    dropped_before: int = 0

    @property
    def position(self) -> int:
        return self.stdout_bytes + self.stderr_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """What ``cut_chunks`` found.

    Attributes:
        chunks: in order of position, none longer than 64 KiB.
        cursor: the boundary to go on from; the frame behind it is incomplete, or only partly delivered.
        full: ``limit`` was reached, so the log may hold more.
        damaged: at ``cursor`` stands something that no writer of ours wrote.
    """

    chunks: tuple[OutputChunk, ...]
    cursor: LogCursor
    full: bool = False
    damaged: bool = False


def cut_chunks(log: bytes, cursor: LogCursor, *, position: int, limit: int) -> Cut:
    """Cuts a stretch of a log into chunks.

    Args:
        log: bytes of the log from ``cursor`` on, ending anywhere.
        cursor: the frame boundary where ``log`` begins.
        position: the first byte wanted.
        limit: most bytes wanted, at least 1.

    Returns:
        The chunks and how far it got. Never raises for what is in ``log``.
    """
    cutter = _Cutter(position=position, limit=limit)
    offset = 0
    while len(log) - offset >= HEADER.size:
        kind, length, read_at = HEADER.unpack_from(log, offset)
        if not _is_sane(kind, length):
            return Cut(chunks=cutter.finish(), cursor=cursor, damaged=True)
        body = offset + HEADER.size
        if len(log) - body < length:
            break
        stdout = stderr = hole = 0
        if kind == GAP:
            hole = sum(GAP_BODY.unpack_from(log, body))
        else:
            stdout, stderr = (length, 0) if kind == STDOUT else (0, length)
            if not cutter.take(_STREAMS[kind], cursor, read_at / 1_000_000, memoryview(log)[body : body + length]):
                return Cut(chunks=cutter.finish(), cursor=cursor, full=True)
        offset = body + length
        cursor = LogCursor(
            file_offset=cursor.file_offset + HEADER.size + length,
            stdout_bytes=cursor.stdout_bytes + stdout,
            stderr_bytes=cursor.stderr_bytes + stderr,
            dropped_bytes=cursor.dropped_bytes + hole,
            dropped_before=cursor.dropped_before + hole if hole else 0,
        )
    return Cut(chunks=cutter.finish(), cursor=cursor, full=cutter.room == 0)


def _is_sane(kind: int, length: int) -> bool:
    if kind == GAP:
        return length == GAP_BODY.size
    return kind in _STREAMS and 0 < length <= MAX_BODY


class _Cutter:
    """Collects bytes into chunks: cuts at the wanted position, at the limit, and merges neighbours."""

    def __init__(self, *, position: int, limit: int) -> None:
        self.room = limit
        self._position = position
        self._done: list[OutputChunk] = []
        self._open: OutputChunk | None = None
        self._data = bytearray()

    def take(self, stream: StreamName, cursor: LogCursor, read_at: float, body: memoryview) -> bool:
        """Returns whether the whole body was of no interest or fitted in."""
        skip = max(0, self._position - cursor.position)
        if skip >= len(body):
            return True
        if self.room == 0:
            return False
        wanted = body[skip : skip + self.room]
        before = cursor.stdout_bytes if stream is StreamName.STDOUT else cursor.stderr_bytes
        piece = OutputChunk(
            stream=stream,
            position=cursor.position + skip,
            stream_offset=before + skip,
            read_at=read_at,
            data=b"",
            dropped_before=0 if skip else cursor.dropped_before,
        )
        self._append(piece, wanted)
        self.room -= len(wanted)
        return len(wanted) == len(body) - skip

    def finish(self) -> tuple[OutputChunk, ...]:
        self._close()
        return tuple(self._done)

    def _append(self, piece: OutputChunk, data: memoryview) -> None:
        begun = self._open
        if begun is None or (
            begun.stream is not piece.stream
            or piece.dropped_before
            or len(self._data) + len(data) > MAX_BODY
            or not 0 <= piece.read_at - begun.read_at <= MERGE_WINDOW_S
        ):
            self._close()
            self._open = piece
        self._data += data

    def _close(self) -> None:
        if self._open is not None:
            self._done.append(replace(self._open, data=bytes(self._data)))
            self._open = None
            self._data.clear()
