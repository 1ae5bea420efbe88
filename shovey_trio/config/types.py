"""The vocabulary of all configuration files: section base class, durations, sizes, addresses, paths."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo

from shovey_trio.core.addresses import split_address

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?")
_SIZES: Final = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_SIZE: Final = re.compile(r"(\d+)\s*(B|KiB|MiB|GiB)?")


class Section(BaseModel):
    """A part of a configuration: immutable, and an unknown key in it is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def parse_duration(value: object) -> float:
    """Seconds of a number or of text such as ``90s``, ``15m``, ``24h``, ``30d``, ``100ms``.

    Raises:
        ValueError: it is neither, or negative.
    """
    if isinstance(value, str) and (found := _DURATION.fullmatch(value.strip())):
        return float(found[1]) * _UNITS[found[2] or "s"]
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float("inf"):
        return float(value)
    raise ValueError('expected a duration such as "90s", "15m", "24h" or a number of seconds')


def format_duration(seconds: float) -> str:
    """The shortest text that ``parse_duration`` reads back to the same whole number of seconds."""
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s" if seconds == int(seconds) else f"{seconds}s"


def parse_size(value: object) -> int:
    """Bytes of a number or of text such as ``64MiB``.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, str) and (found := _SIZE.fullmatch(value.strip())):
        return int(found[1]) * _SIZES[found[2] or ""]
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise ValueError('expected a size such as "64MiB", "512KiB" or a number of bytes')


def format_size(size: int) -> str:
    """The shortest text that ``parse_size`` reads back to the same number."""
    for unit in ("GiB", "MiB", "KiB"):
        if size and size % _SIZES[unit] == 0:
            return f"{size // _SIZES[unit]}{unit}"
    return str(size)


def _check_address(value: str) -> str:
    split_address(value)
    return value


def _optional_address(value: str) -> str:
    return _check_address(value) if value else value


def resolve_path(value: Path, info: ValidationInfo) -> Path:
    """Paths are relative to the configuration file they may stand in, so that a directory can be moved as a whole."""
    context: dict[str, Any] = info.context or {}
    base = context.get("base")
    path = value.expanduser()
    return base / path if base is not None else path.absolute()


def _not_empty(value: object) -> object:
    if value == "":
        raise ValueError("expected a path")
    return value


Duration = Annotated[float, BeforeValidator(parse_duration), Field(ge=0)]
PositiveDuration = Annotated[float, BeforeValidator(parse_duration), Field(gt=0)]
ByteSize = Annotated[int, BeforeValidator(parse_size), Field(gt=0)]
Address = Annotated[str, AfterValidator(_check_address)]
OptionalAddress = Annotated[str, AfterValidator(_optional_address)]
FilePath = Annotated[Path, BeforeValidator(_not_empty), AfterValidator(resolve_path)]
PositiveInt = Annotated[int, Field(gt=0)]


class LogSection(Section):
    """What is logged, to standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="the least severe that is logged"
    )
    format: Literal["auto", "console", "json"] = Field(
        default="auto", description="`auto`: console on a terminal, else json"
    )
