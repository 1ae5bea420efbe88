"""What the settings models say about themselves: a commented configuration file, and rows for the documentation."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from shovey_trio.config.types import format_duration, format_size, parse_duration, parse_size

_WIDTH: Final = 110


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting: its path, its default as TOML, and what it means."""

    path: tuple[str, ...]
    default: str
    meaning: str

    @property
    def key(self) -> str:
        return ".".join(self.path)


def describe_settings(model: type[BaseModel]) -> Iterator[Setting]:
    """Every setting of a settings model, in its order."""
    for section, kind in _sections(model):
        for name, field in kind.model_fields.items():
            yield Setting(path=(section, name), default=_default(field), meaning=field.description or "")


def render_configuration(model: type[BaseModel], values: Mapping[str, str], *, header: str) -> str:
    """A configuration file with every setting: those in ``values`` set, the others commented out at their defaults.

    Args:
        model: a settings model, sections of plain values.
        values: ``section.key`` to text.
        header: first lines, without comment signs.
    """
    lines = textwrap.indent(header.strip(), "# ", lambda _: True).splitlines()
    for section, kind in _sections(model):
        lines += ["", f"# {(kind.__doc__ or '').splitlines()[0]}", f"[{section}]"]
        for name, field in kind.model_fields.items():
            key = f"{section}.{name}"
            lines += textwrap.wrap(f"# {field.description}", _WIDTH, subsequent_indent="# ")
            lines.append(f"{name} = {_toml(values[key])}" if key in values else f"#{name} = {_default(field)}")
    return "\n".join(lines) + "\n"


def _sections(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield name, field.annotation


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    readers = {getattr(item, "func", None) for item in field.metadata}
    if parse_duration in readers:
        return _toml(format_duration(value))
    if parse_size in readers:
        return _toml(format_size(value))
    return _toml(value)


def _toml(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return str(value)
        case Enum():
            return json.dumps(value.value)
        case str() | Path():
            # A JSON string is a TOML basic string for everything that is not a lone surrogate.
            return json.dumps(str(value), ensure_ascii=False)
        case {}:
            return "{}"
        case _:
            raise TypeError(f"no TOML for {type(value).__name__}")
