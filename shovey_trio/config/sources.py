"""From defaults, a TOML file, the environment and flags to one checked, frozen settings object.

Each source outweighs those before it, key by key. Everything that is wrong is reported at once, each with its key, its
value, where it came from and what was expected: an operator should not have to start a daemon five times to find five
mistakes.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from shovey_trio.core.errors import ConfigurationInvalid

_SettingsT = TypeVar("_SettingsT", bound=BaseModel)
_SEPARATOR: Final = "__"
_SHOWN_CHARS: Final = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where settings come from, the weakest first.

    Attributes:
        file: TOML; None for none.
        environ: the process's environment.
        prefix: first part of the variables' names, such as ``SHOVEY_TRIO`` of ``SHOVEY_TRIO__JOBS__KILL_GRACE``.
        overrides: ``section.key`` and value, from flags.
    """

    prefix: str
    file: Path | None = None
    environ: Mapping[str, str] = field(default_factory=dict)
    overrides: tuple[tuple[str, object], ...] = ()


def load_settings(model: type[_SettingsT], sources: Sources) -> _SettingsT:
    """Reads and checks everything; blocking (one file).

    Relative paths are relative to the file's directory, or to the working directory when there is no file.

    Raises:
        ConfigurationInvalid: the file cannot be read, is no TOML, or values are wrong; the message lists all of them.
    """
    values: dict[str, Any] = {}
    origins: dict[tuple[str, ...], str] = {}
    if sources.file is not None:
        values = _read_toml(sources.file)
    for path, value, origin in (*_environment(sources), *_flags(sources.overrides)):
        _put(values, path, value)
        origins[path] = origin
    base = sources.file.absolute().parent if sources.file is not None else None
    try:
        return model.model_validate(values, context={"base": base})
    except ValidationError as exc:
        lines = [_describe(model, error, origins) for error in exc.errors(include_url=False, include_context=False)]
        where = f"{sources.file}: " if sources.file is not None else ""
        count = "1 error" if len(lines) == 1 else f"{len(lines)} errors"
        raise ConfigurationInvalid(
            f"{where}{count} in the configuration\n" + "\n".join(f"  {line}" for line in lines), errors="\n".join(lines)
        ) from None


def parse_overrides(texts: Iterable[str]) -> tuple[tuple[str, object], ...]:
    """The overrides of ``--set section.key=value`` flags.

    Raises:
        ConfigurationInvalid: one of them is not of this form.
    """
    pairs = []
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or "." not in key.strip().strip("."):
            raise ConfigurationInvalid(f"--set {text[:_SHOWN_CHARS]}: expected section.key=value")
        pairs.append((key.strip(), value))
    return tuple(pairs)


def setting_names(model: type[BaseModel]) -> Iterator[tuple[str, ...]]:
    """The path of every setting that is not itself a section, in the order of the model."""
    for name, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from ((name, *rest) for rest in setting_names(kind))
        else:
            yield (name,)


def variable_name(prefix: str, path: tuple[str, ...]) -> str:
    """The environment variable of a setting."""
    return _SEPARATOR.join((prefix, *path)).upper()


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_bytes().decode())
    except OSError as exc:
        raise ConfigurationInvalid(f"{file}: {exc.strerror or exc}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigurationInvalid(f"{file}: not TOML: {exc}") from exc


def _environment(sources: Sources) -> Iterator[tuple[tuple[str, ...], object, str]]:
    start = sources.prefix + _SEPARATOR
    for name, text in sorted(sources.environ.items()):
        if name.startswith(start):
            yield tuple(name.removeprefix(start).lower().split(_SEPARATOR)), _from_text(text), name


def _flags(overrides: Iterable[tuple[str, object]]) -> Iterator[tuple[tuple[str, ...], object, str]]:
    for key, value in overrides:
        yield tuple(key.split(".")), _from_text(value) if isinstance(value, str) else value, "a flag"


def _from_text(text: str) -> object:
    """Text stays text (the model converts numbers and truth values); lists and tables are written as in TOML."""
    if text[:1] not in ("[", "{"):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # an IPv6 address starts with a bracket too; what is wrong, the model will say


def _put(values: dict[str, Any], path: tuple[str, ...], value: object) -> None:
    *sections, key = path
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            inner = values[section] = {}
        values = inner
    values[key] = value


def _describe(model: type[BaseModel], error: ErrorDetails, origins: Mapping[tuple[str, ...], str]) -> str:
    path = tuple(str(part) for part in error["loc"])
    key = ".".join(path)
    origin = next((f" (from {text})" for start, text in origins.items() if path[: len(start)] == start), "")
    match error["type"]:
        case "extra_forbidden":
            return f"{key}: unknown key{origin}{_suggestion(model, path)}"
        case "missing":
            return f"{key}: missing"
        case _:
            expected = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
            expected = expected.replace("Input should be", "expected", 1)
            # A section's own check concerns several keys; its message names them.
            shown = "" if isinstance(error["input"], (dict, BaseModel)) else f" = {_show(error['input'])}"
            return f"{key}{shown}{origin}: {expected}"


def _suggestion(model: type[BaseModel], path: tuple[str, ...]) -> str:
    known = [".".join(name) for name in setting_names(model)] + list(model.model_fields)
    # The right key in the wrong section is the commoner mistake, and its spelling is far from that of the whole path.
    same_key = [name for name in known if name.rpartition(".")[2] == path[-1] and "." in name]
    near = same_key or get_close_matches(".".join(path), known, n=1, cutoff=0.75)
    return f", did you mean {near[0]}?" if near else ""


def _show(value: object) -> str:
    text = repr(value) if not isinstance(value, str) else f'"{value}"'
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…"
