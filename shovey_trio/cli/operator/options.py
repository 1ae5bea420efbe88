"""What every command of ``shovey`` shares on its command line: root options, parameter types, how a job is named."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from shovey_trio.core.ids import is_uuid

LAST_JOB: Final = "last"


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorOptions:
    """The options of ``shovey`` itself; the context's ``obj``.

    Attributes:
        config: the file or client directory named by ``--config``.
        overrides: ``section.key`` and value of settings given by flags.
    """

    config: Path | None = None
    overrides: tuple[tuple[str, object], ...] = ()


fail_on_truncation_option = click.option(
    "--fail-on-truncation", is_flag=True, help="Exit with 11 if output is missing and all else went well."
)


def positive_seconds(_ctx: click.Context, _param: click.Parameter, value: str | None) -> float | None:
    """Click's view of a duration such as 90, 90s, 15m or 2h: seconds above 0, or None when the option is absent."""
    if value is None:
        return None
    from shovey_trio.config.types import parse_duration

    try:
        seconds = parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r}: {error}") from error
    if seconds == 0:
        raise click.BadParameter("a duration must be longer than 0")
    return seconds


def full_job_id(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    """Click's view of a job's id: all of it, in lower case, or ``last``; what is short may mean another job one day."""
    text = value.strip().lower()
    if text != LAST_JOB and not is_uuid(text):
        raise click.BadParameter(f"{value!r} is no job id: give all 36 characters, or {LAST_JOB!r} for your newest job")
    return text


def tag_pairs(_ctx: click.Context, _param: click.Parameter, value: tuple[str, ...]) -> dict[str, str]:
    """Click's view of repeated KEY=VALUE."""
    pairs: dict[str, str] = {}
    for tag in value:
        key, equals, wanted = tag.partition("=")
        if not (key and equals):
            raise click.BadParameter(f"{tag!r} is not KEY=VALUE")
        if pairs.setdefault(key, wanted) != wanted:
            raise click.BadParameter(f"no node carries {key}={pairs[key]} and {tag} at once")
    return pairs
