"""How far a run has been reported: one small file per run, so that a restarted agent goes on where it was.

A piece of output is written down before it is sent, whole. Whether it arrived is not known when the agent dies in
between; the same bytes under the same number are then sent again, and a server that has them answers 409. Cutting the
output anew would make other pieces under the same numbers, and bytes would be lost or doubled.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from shovey_agent.supervisor.spool_files import write_file
from shovey_trio.core.jobs.model import OutputChunk, StreamName
from shovey_trio.shovey.protocol.report import StreamPut

_FORMAT: Final = 1
_MAX_CHARACTER: Final = 4  # bytes of the longest one in UTF-8


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What was told of one run.

    Attributes:
        running: that it runs.
        position: up to where the spool's output was cut into pieces.
        seqs: number of the next piece, by stream.
        carried: the beginning of a character that the last piece of a stream was cut in, sent with the next.
        pending: the piece that is on its way.
        ended: streams whose last piece was sent.
    """

    running: bool = False
    position: int = 0
    seqs: dict[StreamName, int] = field(default_factory=lambda: dict.fromkeys(StreamName, 0))
    carried: dict[StreamName, bytes] = field(default_factory=lambda: dict.fromkeys(StreamName, b""))
    pending: StreamPut | None = None
    ended: frozenset[StreamName] = frozenset()

    def with_chunk(self, chunk: OutputChunk) -> Progress:
        """With the next piece of output cut, and pending if there is a whole character in it."""
        data = self.carried[chunk.stream] + chunk.data
        whole = len(data) - _cut_character(data)
        moved = replace(
            self,
            position=chunk.position + len(chunk.data),
            carried={**self.carried, chunk.stream: data[whole:]},
        )
        if not whole:
            return moved
        return replace(
            moved,
            pending=StreamPut(stream=chunk.stream, seq=self.seqs[chunk.stream], is_last=False, data=data[:whole]),
        )

    def with_last(self, stream: StreamName) -> Progress:
        """With the last piece of a stream pending: what was carried, or nothing."""
        last = StreamPut(stream=stream, seq=self.seqs[stream], is_last=True, data=self.carried[stream])
        return replace(self, carried={**self.carried, stream: b""}, pending=last)

    def delivered(self) -> Progress:
        """With the pending piece taken by the server."""
        piece = self.pending
        assert piece is not None
        ended = self.ended | {piece.stream} if piece.is_last else self.ended
        return replace(self, seqs={**self.seqs, piece.stream: piece.seq + 1}, pending=None, ended=ended)


class ProgressFiles:
    """The files of all runs, in one directory. Everything blocks.

    They outlive the agent, not the machine: after a power cut its runs are ``killed`` anyway, and a piece that is sent
    twice is sent under the same number. So they are not synced.
    """

    def __init__(self, directory: Path) -> None:
        """Makes the directory if need be.

        Raises:
            OSError: it cannot be made.
        """
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def load(self, run_id: str) -> Progress:
        """What is known; of a run without a whole file, nothing."""
        try:
            return _decode(json.loads(self._path(run_id).read_bytes()))
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return Progress()

    def save(self, run_id: str, progress: Progress) -> None:
        """Replaces the file at once.

        Raises:
            OSError: the disk is full or gone.
        """
        temporary = self._path(run_id).with_suffix(".new")
        write_file(str(temporary), _encode(progress), durable=False)
        temporary.rename(self._path(run_id))

    def remove(self, run_id: str) -> None:
        """Forgets a run."""
        with contextlib.suppress(OSError):
            os.unlink(self._path(run_id))

    def _path(self, run_id: str) -> Path:
        return self._directory / f"{run_id}.json"


def _cut_character(data: bytes) -> int:
    """How many bytes at the end are the beginning of a character whose rest has not come."""
    for length in range(1, min(_MAX_CHARACTER - 1, len(data)) + 1):
        lead = data[-length]
        if lead & 0b1100_0000 == 0b1000_0000:
            continue  # inside a character
        needed = 2 if lead & 0b1110_0000 == 0b1100_0000 else 3 if lead & 0b1111_0000 == 0b1110_0000 else 0
        needed = 4 if lead & 0b1111_1000 == 0b1111_0000 else needed
        return length if needed > length else 0
    return 0


def _encode(progress: Progress) -> bytes:
    piece = progress.pending
    document = {
        "format": _FORMAT,
        "running": progress.running,
        "position": progress.position,
        "seqs": progress.seqs,
        "carried": {stream: data.hex() for stream, data in progress.carried.items()},
        "ended": sorted(progress.ended),
        "pending": None
        if piece is None
        else {"stream": piece.stream, "seq": piece.seq, "is_last": piece.is_last, "data": piece.data.hex()},
    }
    return json.dumps(document).encode("ascii")


def _decode(document: dict[str, Any]) -> Progress:
    if document["format"] != _FORMAT:
        raise ValueError("unknown format")
    piece = document["pending"]
    return Progress(
        running=bool(document["running"]),
        position=int(document["position"]),
        seqs={stream: int(document["seqs"][stream]) for stream in StreamName},
        carried={stream: bytes.fromhex(document["carried"][stream]) for stream in StreamName},
        ended=frozenset(StreamName(stream) for stream in document["ended"]),
        pending=None
        if piece is None
        else StreamPut(
            stream=StreamName(piece["stream"]),
            seq=int(piece["seq"]),
            is_last=bool(piece["is_last"]),
            data=bytes.fromhex(piece["data"]),
        ),
    )
