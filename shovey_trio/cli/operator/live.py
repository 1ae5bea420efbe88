"""The live view on a terminal: output scrolls by, labelled; below it stands a line per node and the counts.

rich draws when ``tick`` says so and never from a thread of its own; lines are handed to it in batches, because each
print redraws the region below.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from shovey_trio.cli.operator.job_view import JobView, describe_run, job_word, run_elapsed, run_ended, run_word
from shovey_trio.cli.operator.labelled_output import Line, LineCollector, LineStyle, label_width
from shovey_trio.cli.text.output_formats import STATE_COLOURS
from shovey_trio.cli.text.terminal_text import printable
from shovey_trio.core.jobs.states import RunState
from shovey_trio.v1 import job_pb2
from shovey_trio.v1.job_service_pb2 import WatchJobResponse

# Lines kept between two draws (of at most 16 KiB each); more are drawn at once.
_MOST_LINES: Final = 200
# Nodes listed when the view closes; with more than that the rest is only counted.
_FINAL_ROWS: Final = 40
# Rows of the terminal that are not for nodes: headline, counts, note, and the cursor's own.
_OTHER_ROWS: Final = 4
# Seconds between draws when nothing but time has passed.
_CLOCK_STEP: Final = 1.0
# How much longer than a draw the pause after it is: a view of 10,000 nodes takes some 50 ms to draw.
_IDLE_SHARE: Final = 9.0

# What a person looks for first.
_ORDER: Final = (
    RunState.RUNNING,
    RunState.ACCEPTED,
    RunState.UNKNOWN,
    RunState.DISPATCHED,
    RunState.PENDING,
    RunState.HELD,
    RunState.FAILED,
    RunState.CRASHED,
    RunState.TIMED_OUT,
    RunState.NACKED,
    RunState.INVALID,
    RunState.UNAVAILABLE,
    RunState.SKIPPED,
    RunState.CANCEL_UNPROVEN,
    RunState.CANCELLED,
    RunState.SUCCEEDED,
)
_RANK: Final = {state.value: rank for rank, state in enumerate(_ORDER)}


class LiveDisplay:
    """A ``Display`` for a person."""

    def __init__(self, view: JobView, *, console: Console | None = None) -> None:
        self._view = view
        self._console = console or Console(highlight=False)
        self._live = Live(
            console=self._console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        self._collector = LineCollector(self._take_line)
        self._style = LineStyle()
        self._waiting: list[Text] = []
        self._last_lines: dict[str, str] = {}
        self._note = ""
        self._dirty = True
        self._drawn_at = 0.0
        self._cost = 0.0

    def show(self, event: WatchJobResponse, changed: list[job_pb2.Run]) -> None:
        """Takes an event in; it is drawn at the next tick."""
        self._dirty = True
        match event.WhichOneof("event"):
            case "snapshot":
                self._style = LineStyle(label_width=label_width(list(self._view.runs)))
            case "output":
                self._collector.feed(event.output.node, event.output.chunk)
                if partial := printable(self._collector.partial(event.output.node)).strip():
                    self._last_lines[event.output.node] = partial
            case "run_changed" if run_ended(event.run_changed.run):
                self._collector.end(event.run_changed.run)

    def note(self, text: str) -> None:
        """Shows ``text`` below the nodes until the next note; drawn at once, it may be a question of seconds."""
        self._note = text
        self._draw()

    def tick(self) -> None:
        """Draws if something has changed, or a second has passed; not more often than a tenth of the time allows."""
        idle = time.monotonic() - self._drawn_at
        if idle >= _CLOCK_STEP or (self._dirty and idle >= self._cost * _IDLE_SHARE):
            self._draw()

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._collector.finish()
        for run in self._view.runs.values():
            self._collector.end(run)
        self._print_lines()
        self._live.update(Text(""), refresh=True)
        self._live.stop()
        if kind is None and self._view.job.id:
            self._console.print(self._picture(_FINAL_ROWS))

    def _take_line(self, line: Line) -> None:
        text = printable(line.data)
        if text.strip():
            self._last_lines[line.node] = text.strip()
        label_style = "red" if line.is_stderr else "cyan"
        self._waiting.append(
            Text.assemble((self._style.prefix(line), label_style), (text, "yellow" if line.is_gap else ""))
        )
        if len(self._waiting) >= _MOST_LINES:
            self._print_lines()

    def _print_lines(self) -> None:
        lines, self._waiting = self._waiting, []
        if lines:
            self._console.print(Text("\n").join(lines), soft_wrap=True)

    def _draw(self) -> None:
        began = time.monotonic()
        self._print_lines()
        self._live.update(self._picture(max(self._console.height - _OTHER_ROWS, 1)), refresh=True)
        self._dirty = False
        self._drawn_at = time.monotonic()
        self._cost = self._drawn_at - began

    def _picture(self, rows: int) -> RenderableType:
        job = self._view.job
        headline = Text.assemble(
            ("job ", "bold"), (job.id, "bold"), " ", printable(job.command), " ", _coloured(job_word(job))
        )
        if job.cancel_requested and not self._view.ended:
            headline.append(" (cancelling)", "yellow")
        parts: list[RenderableType] = [headline, self._nodes(rows), self._counts(rows)]
        if self._note and not self._view.ended:
            parts.append(Text(self._note, style="bold yellow"))
        return Group(*parts)

    def _nodes(self, rows: int) -> Table:
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False, expand=True)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, justify="right")
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        now = time.time()
        ranked = sorted(self._view.runs.values(), key=lambda run: (_RANK.get(run_word(run), -1), run.node))
        for run in sorted(ranked[:rows], key=lambda run: run.node):
            table.add_row(
                Text(printable(run.node)),
                _coloured(describe_run(run), word=run_word(run)),
                run_elapsed(run, now=now),
                Text(self._last_lines.get(run.node, ""), style="dim"),
            )
        return table

    def _counts(self, rows: int) -> Text:
        hidden = len(self._view.runs) - rows
        text = Text(f"… and {hidden} more  " if hidden > 0 else "")
        counts = self._view.counts()
        for state in RunState:
            if counts[state.value]:
                text.append(f"{counts[state.value]} ").append(_coloured(state.value)).append("  ")
        why = self._view.job.detail or self._view.job.cause
        if why and self._view.ended:
            text.append(printable(why), "yellow")
        return text


def _coloured(text: str, *, word: str | None = None) -> Text:
    return Text(printable(text), style=STATE_COLOURS.get(word or text, ""))
