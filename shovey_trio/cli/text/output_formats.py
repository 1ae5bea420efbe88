"""The one place that knows ``-o table|json|jsonl|yaml|name``: the option, and how a listing looks in each format."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any, Generic, ParamSpec, TypeVar

import click

P = ParamSpec("P")
T = TypeVar("T")
M = TypeVar("M")
# What a command without messages lists: a row's values by name.
Row = Mapping[str, Any]

# Colours of words that stand for a state, wherever they are shown.
STATE_COLOURS = {
    "succeeded": "green",
    "complete": "green",
    "up": "green",
    "running": "cyan",
    "accepted": "cyan",
    "dispatched": "cyan",
    "failed": "red",
    "crashed": "red",
    "timed_out": "red",
    "nacked": "red",
    "invalid": "red",
    "quorum_failed": "red",
    "down": "red",
    "unavailable": "yellow",
    "unknown": "yellow",
    "cancelled": "yellow",
    "cancel_unproven": "yellow",
}


class Format(StrEnum):
    """How results are written."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"
    YAML = "yaml"
    NAME = "name"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column(Generic[M]):
    """A column of a table; ``of`` gives a cell's text."""

    title: str
    of: Callable[[M], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape(Generic[M]):
    """How a kind of message, or of rows, is listed.

    Attributes:
        columns: of the table.
        name: what ``-o name`` prints, one a line.
        nothing: said on stderr instead of an empty table.
    """

    columns: Sequence[Column[M]]
    name: Callable[[M], str]
    nothing: str


def row_shape(*titles: str, nothing: str) -> Shape[Row]:
    """Rows as a table: each title is a key of theirs in capitals, and the first is their name."""
    keys = [title.lower().replace(" ", "_") for title in titles]
    columns: list[Column[Row]] = [
        Column(title=title, of=partial(_cell, key=key)) for title, key in zip(titles, keys, strict=True)
    ]
    return Shape(columns=columns, name=columns[0].of, nothing=nothing)


def output_option(function: Callable[P, T]) -> Callable[P, T]:
    """Adds ``-o/--output``; passed as ``output``: a ``Format``, or None for what the settings say."""
    option = click.option(
        "-o",
        "--output",
        type=click.Choice([choice.value for choice in Format]),
        callback=lambda _ctx, _param, value: Format(value) if value else None,
        help="How to write the result.  [default: table]",
    )
    return option(function)


def write_listing(items: Sequence[M], shape: Shape[M], output: Format | None) -> None:
    """Write ``items`` to stdout; as a table if nothing is said."""
    match output or Format.TABLE:
        case Format.TABLE:
            if items:
                write_table(
                    [column.title for column in shape.columns],
                    [[column.of(item) for column in shape.columns] for item in items],
                )
            else:
                click.echo(shape.nothing, err=True)
        case Format.NAME:
            for item in items:
                click.echo(shape.name(item))
        case Format.JSONL:
            for item in items:
                write_document(_plain(item), Format.JSONL)
        case Format.JSON | Format.YAML as chosen:
            write_document([_plain(item) for item in items], chosen)


def write_document(document: Any, output: Format) -> None:
    """Write one plain value to stdout: YAML for ``yaml``, one line of JSON for ``jsonl``, else indented JSON."""
    match output:
        case Format.YAML:
            import yaml

            click.echo(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), nl=False)
        case Format.JSONL:
            click.echo(json.dumps(document, ensure_ascii=False, separators=(",", ":")))
        case _:
            click.echo(json.dumps(document, ensure_ascii=False, indent=2))


def write_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write aligned columns; what other people chose is made harmless for a terminal."""
    from shovey_trio.cli.text.terminal_text import printable

    cells = [[printable(cell.replace("\n", " ")) for cell in row] for row in rows]
    widths = [max(len(row[index]) for row in [titles, *cells]) for index in range(len(titles))]
    for row in [titles, *cells]:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        padded[-1] = row[-1]  # nothing trails
        coloured = [
            text.replace(cell, click.style(cell, fg=STATE_COLOURS[cell]), 1) if cell in STATE_COLOURS else text
            for cell, text in zip(row, padded, strict=True)
        ]
        click.echo("  ".join(coloured).rstrip())


def _plain(item: Any) -> Row:
    if isinstance(item, Mapping):
        return item
    from shovey_trio.cli.text.plain import plain_message

    return plain_message(item)


def _cell(row: Row, key: str) -> str:
    match row[key]:
        case None | "" | False | []:
            return "-"
        case True:
            return "yes"
        case list() as several:
            return ",".join(several)
        case value:
            return str(value)
