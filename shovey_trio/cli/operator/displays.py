"""What an attached command shows while a job goes on, one class per kind of reader.

A person at a terminal gets ``live.LiveDisplay``; the ones here are for pipes, logs and programs. Results go to stdout,
what is said to a person goes to stderr.
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Final, Protocol, Self

import click

from shovey_trio.cli.operator.job_view import JobView, describe_run, run_elapsed, run_ended, run_word
from shovey_trio.cli.operator.labelled_output import LineCollector, LineStyle, label_width, write_line
from shovey_trio.cli.text.output_formats import Format, write_document
from shovey_trio.cli.text.plain import plain_message
from shovey_trio.cli.text.times import unix
from shovey_trio.core.jobs.states import RunState
from shovey_trio.v1 import job_pb2
from shovey_trio.v1.job_service_pb2 import WatchJobResponse

# On the way to the command's start; a line for each would say nothing that the next does not.
_UNREMARKABLE: Final = frozenset(
    {RunState.HELD.value, RunState.PENDING.value, RunState.DISPATCHED.value, RunState.ACCEPTED.value}
)


class Display(Protocol):
    """Shows a job while it goes on; entered when it begins, left when the command is no longer attached."""

    def show(self, event: WatchJobResponse, changed: list[job_pb2.Run]) -> None:
        """Show an event that the view has taken note of, and the runs it changed."""

    def note(self, text: str) -> None:
        """Say something to the person."""

    def tick(self) -> None:
        """Time has passed; called about ten times a second."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class QuietDisplay:
    """Shows nothing but what is said to a person: for ``-o json``, ``yaml`` and ``name``, whose result comes last."""

    def show(self, event: WatchJobResponse, changed: list[job_pb2.Run]) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Writes a line to stderr."""
        click.echo(text, err=True)

    def tick(self) -> None:
        """Nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.stdout.flush()


class EventsDisplay(QuietDisplay):
    """Each event as one line of JSON, for programs."""

    def show(self, event: WatchJobResponse, changed: list[job_pb2.Run]) -> None:
        """Writes the event."""
        write_document(plain_message(event), Format.JSONL)


class PlainDisplay(QuietDisplay):
    """Output as labelled lines on stdout; on stderr a line for each change of a run, and how the job ended."""

    def __init__(self, view: JobView) -> None:
        self._view = view
        self._lines = LineCollector(lambda line: write_line(line, self._style))
        self._style = LineStyle()

    def show(self, event: WatchJobResponse, changed: list[job_pb2.Run]) -> None:
        """Writes lines that are complete and runs that changed."""
        match event.WhichOneof("event"):
            case "snapshot":
                self._style = LineStyle(label_width=label_width(list(self._view.runs)))
            case "output":
                self._lines.feed(event.output.node, event.output.chunk)
        for run in changed:
            if run_ended(run) and event.WhichOneof("event") != "snapshot":
                self._lines.end(run)
        sys.stdout.flush()
        for run in changed:
            if run_word(run) in _UNREMARKABLE:
                continue
            took = run_elapsed(run, now=unix(run.updated_at)) if run_ended(run) else ""
            self.note(f"{run.node}: {describe_run(run)}{f' after {took}' if took else ''}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.finish()
        for run in self._view.runs.values():
            self._lines.end(run)
        sys.stdout.flush()
        if self._view.ended:
            self.note(f"job {self._view.job.id} {self._view.summary()}")
