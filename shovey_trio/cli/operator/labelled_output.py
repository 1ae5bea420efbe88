"""Output of many nodes as lines that say whose they are: ``node | text``.

On a terminal the text is made harmless and undecodable bytes are replaced; into a pipe or a file every line goes byte
for byte. Where output is missing a line says so, in its place on a terminal and else on stderr.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import click

from shovey_trio.cli.text.terminal_text import LineAssembler, printable
from shovey_trio.cli.text.times import unix
from shovey_trio.v1 import job_pb2

# Node names are padded to the longest, up to this many columns.
_WIDEST_LABEL: Final = 28


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a run's output, without its newline; ``read_at`` in unix seconds, by the node's clock.

    ``is_gap``: it is no output and says what is missing of it.
    """

    node: str
    is_stderr: bool
    read_at: float
    data: bytes
    is_gap: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LineStyle:
    """How lines are written.

    Attributes:
        label: the node's name goes in front.
        label_width: columns the names are padded to.
        timestamps: the time the node read the line goes in front of all.
        split_streams: what the command wrote to stderr goes to our stderr.
    """

    label: bool = True
    label_width: int = 0
    timestamps: bool = False
    split_streams: bool = False

    def prefix(self, line: Line) -> str:
        """What goes in front of the line."""
        stamp = ""
        if self.timestamps:
            stamp = datetime.fromtimestamp(line.read_at).astimezone().isoformat(timespec="milliseconds") + " "
        return stamp + (f"{printable(line.node).ljust(self.label_width)} | " if self.label else "")


def label_width(nodes: list[str]) -> int:
    """The width that lines up the labels of ``nodes``."""
    return min(max(map(len, nodes), default=0), _WIDEST_LABEL)


def write_line(line: Line, style: LineStyle) -> None:
    """Write a line to stdout, or to stderr for ``split_streams``; not flushed."""
    away = line.is_gap and not sys.stdout.isatty()
    stream = sys.stderr if away or (style.split_streams and line.is_stderr) else sys.stdout
    prefix = style.prefix(line)
    if stream.isatty():
        text = printable(line.data)
        colour = "yellow" if line.is_gap else "red" if line.is_stderr and style.label else None
        stream.write(prefix + (click.style(text, fg=colour) if colour else text) + "\n")
    else:
        stream.buffer.write(prefix.encode() + line.data + b"\n")
        if line.is_gap:
            stream.flush()  # before what else is said there


def gap_text(size: int) -> str:
    """What is said where so many bytes of output are missing."""
    return f"[{size:,} bytes of output are missing here: more was written than is kept of a run]"


INCOMPLETE_TEXT: Final = "[the node never sent the end of this output: some of it may be missing]"


class LineCollector:
    """Puts the chunks of many runs together into lines; ``emit`` takes each."""

    def __init__(self, emit: Callable[[Line], None]) -> None:
        self._emit = emit
        self._assemblers: dict[tuple[str, bool], LineAssembler] = {}
        self._last_read: dict[tuple[str, bool], float] = {}
        self._missing: Counter[str] = Counter()

    def feed(self, node: str, chunk: job_pb2.OutputChunk) -> None:
        """Emit the lines that are complete with ``chunk``."""
        if chunk.dropped_before:
            self._tell_gap(node, chunk.dropped_before, unix(chunk.read_at))
        key = (node, chunk.stream == job_pb2.OUTPUT_STREAM_STDERR)
        assembler = self._assemblers.setdefault(key, LineAssembler())
        began = self._last_read.get(key, unix(chunk.read_at)) if assembler.partial else unix(chunk.read_at)
        for data in assembler.feed(chunk.data):
            self._emit(Line(node=node, is_stderr=key[1], read_at=began, data=data))
            began = unix(chunk.read_at)
        self._last_read[key] = began

    def end(self, run: job_pb2.Run) -> None:
        """Emit the unfinished last lines of a run that has ended, and what is missing and was not told yet."""
        self.finish(run.node)
        at = unix(run.finished_at)
        if (missing := run.dropped_bytes - self._missing[run.node]) > 0:
            self._tell_gap(run.node, missing, at)
        if run.output_incomplete:
            self._emit(Line(node=run.node, is_stderr=False, read_at=at, data=INCOMPLETE_TEXT.encode(), is_gap=True))

    def finish(self, node: str | None = None) -> None:
        """Emit unfinished last lines, of one node or of all."""
        for key, assembler in self._assemblers.items():
            if node in {None, key[0]}:
                for data in assembler.flush():
                    self._emit(Line(node=key[0], is_stderr=key[1], read_at=self._last_read[key], data=data))

    def _tell_gap(self, node: str, size: int, at: float) -> None:
        self.finish(node)
        self._missing[node] += size
        self._emit(Line(node=node, is_stderr=False, read_at=at, data=gap_text(size).encode(), is_gap=True))

    def partial(self, node: str) -> bytes:
        """What there is of the node's stdout line in progress, such as a prompt or a progress bar."""
        assembler = self._assemblers.get((node, False))
        return assembler.partial if assembler is not None else b""
