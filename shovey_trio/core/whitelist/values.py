"""What the value of a whitelisted argument or variable may be.

Patterns are matched in full by RE2, whose time is linear in the value whatever the pattern: no value an operator can
send makes an agent search for long (``re`` backtracks; RE2's syntax page lists what it leaves out for that: look-around
and back-references). ``.`` matches no newline; a negated class such as ``[^;]`` does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

import re2  # type: ignore[import-untyped]  # ships no stubs

MAX_PATTERN = 1_000
# For one compiled pattern and its automata; RE2 goes on with a slower, still linear one when they do not fit.
_PATTERN_MEMORY = 1024 * 1024
#: Bytes of a value in UTF-8, unless the rule says less. Linux gives a string 128 KiB.
MAX_VALUE = 4_096
# What ends a line for one program or another; no other control character belongs into a word either.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,18})")
_LARGEST = 2**63 - 1
_KEYS = frozenset({"type", "pattern", "values", "min", "max", "under", "max_length", "default", "optional"})
_PROBES = ("-", "--", "-x", "--x", "-1", "-rf")


class ValueKind(StrEnum):
    """The types."""

    STRING = "string"
    INT = "int"
    ENUM = "enum"
    PATH = "path"


_OWN_KEYS = {
    ValueKind.STRING: {"pattern"},
    ValueKind.INT: {"min", "max"},
    ValueKind.ENUM: {"values"},
    ValueKind.PATH: {"pattern", "under"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueRule:
    """What one value may be.

    Attributes:
        pattern: RE2; for a string it replaces the rules against leading dashes and line breaks.
        under: directories, without a slash at the end; empty: any.
        default: the value when none is given.
        optional: whether it may be left out.
    """

    kind: ValueKind = ValueKind.STRING
    pattern: str | None = None
    values: tuple[str, ...] = ()
    minimum: int = 0
    maximum: int = _LARGEST
    under: tuple[str, ...] = ()
    max_length: int = MAX_VALUE
    default: str | None = None
    optional: bool = False

    def mismatch(self, value: str) -> str | None:
        """Why a value is not permitted, without the value, or None when it is."""
        if not is_passable(value):
            return "has a NUL or a lone surrogate, which no program can be given"
        if len(value.encode()) > self.max_length:
            return f"is longer than {self.max_length} bytes"
        match self.kind:
            case ValueKind.ENUM:
                return None if value in self.values else "is none of the permitted values"
            case ValueKind.INT:
                return self._integer_mismatch(value)
            case ValueKind.PATH:
                return self._path_mismatch(value)
            case ValueKind.STRING if self.pattern is None:
                return _plain_mismatch(value)
            case ValueKind.STRING:
                return self._pattern_mismatch(value)

    @property
    def is_free(self) -> bool:
        """Whether an operator can put text of their own into it."""
        return self.kind in (ValueKind.STRING, ValueKind.PATH)

    @property
    def admits_dash(self) -> bool:
        """Whether it is seen to admit a word that a program could take for an option."""
        if self.kind is ValueKind.INT:
            return self.minimum < 0
        return self.kind is ValueKind.STRING and any(self.mismatch(probe) is None for probe in _PROBES)

    def _integer_mismatch(self, value: str) -> str | None:
        if not _INTEGER.fullmatch(value) or value == "-0":
            return "is no integer in plain decimals"
        if not self.minimum <= int(value) <= self.maximum:
            return f"lies outside {self.minimum} to {self.maximum}"
        return None

    def _path_mismatch(self, value: str) -> str | None:
        if _UNPRINTABLE.search(value):
            return "has a line break or control character"
        if not is_plain_path(value):
            return "is no absolute path without '.', '..' and empty parts"
        if self.under and not any(value == root or value.startswith(f"{root}/") for root in self.under):
            return "lies outside the permitted directories"
        return None if self.pattern is None else self._pattern_mismatch(value)

    def _pattern_mismatch(self, value: str) -> str | None:
        assert self.pattern is not None
        return None if compile_pattern(self.pattern).fullmatch(value) else "does not match the pattern in full"


@lru_cache(maxsize=1024)
def compile_pattern(pattern: str) -> re2._Regexp[str]:
    """Compiles a pattern.

    Raises:
        re2.error: RE2 does not take it.
    """
    options = re2.Options()
    options.log_errors = False  # it would write to standard error by itself
    options.max_mem = _PATTERN_MEMORY
    return re2.compile(pattern, options=options)


def is_passable(word: str) -> bool:
    """Whether a program can be given this word at all."""
    return "\0" not in word and not any("\ud800" <= character <= "\udfff" for character in word)


def is_plain_path(path: str) -> bool:
    """Whether a path is absolute and means what it says: no ``.``, ``..`` or empty part in it."""
    return path.startswith("/") and not {"", ".", ".."} & set(path[1:].split("/"))


def rule_problems(what: str, document: Any) -> Iterator[str]:
    """Yields everything that is wrong with a rule as written; ``document`` is the JSON object as a dict."""
    if not isinstance(document, dict):
        yield f'{what} must be an object such as {{"type": "int"}}'
        return
    kind_name = document.get("type", "string")
    if not isinstance(kind_name, str) or kind_name not in set(ValueKind):
        yield f"{what}: 'type' must be one of {', '.join(ValueKind)}"
        return
    kind = ValueKind(kind_name)
    if unknown := sorted(document.keys() - _KEYS):
        yield f"{what}: not understood: {', '.join(unknown)}"
    others = set().union(*_OWN_KEYS.values()) - _OWN_KEYS[kind]
    if foreign := sorted(document.keys() & others):
        yield f"{what}: {', '.join(foreign)} makes no sense for type {kind}"
    found = [*_problems_of_keys(kind, document)]
    yield from (f"{what}: {problem}" for problem in found)
    default = document.get("default")
    if default is not None and not found:
        if not isinstance(default, str):
            yield f"{what}: 'default' must be a string"
        elif (why := read_rule(document).mismatch(default)) is not None:
            yield f"{what}: the default {why}"


def read_rule(document: dict[str, Any]) -> ValueRule:
    """The rule of a document that ``rule_problems`` has nothing to say of."""
    return ValueRule(
        kind=ValueKind(document.get("type", "string")),
        pattern=document.get("pattern"),
        values=tuple(document.get("values", ())),
        minimum=document.get("min", 0),
        maximum=document.get("max", _LARGEST),
        under=tuple(root.rstrip("/") for root in document.get("under", ())),
        max_length=document.get("max_length", MAX_VALUE),
        default=document.get("default"),
        optional=document.get("optional", False),
    )


def _plain_mismatch(value: str) -> str | None:
    if not value:
        return "is empty"
    if value.startswith("-"):
        return "begins with a dash, which no pattern permits"
    return "has a line break or control character, which no pattern permits" if _UNPRINTABLE.search(value) else None


def _problems_of_keys(kind: ValueKind, document: dict[str, Any]) -> Iterator[str]:
    if "pattern" in document:
        yield from _problems_of_pattern(document["pattern"])
    if kind is ValueKind.ENUM:
        values = document.get("values")
        if not isinstance(values, list) or not values or not all(isinstance(v, str) and is_passable(v) for v in values):
            yield "'values' must be a list of strings that a program can be given"
    for key in ("min", "max"):
        if key in document and not _is_integer(document[key], -_LARGEST, _LARGEST):
            yield f"{key!r} must be an integer of 64 bits"
    least, most = document.get("min", 0), document.get("max", _LARGEST)
    if all(_is_integer(bound, -_LARGEST, _LARGEST) for bound in (least, most)) and least > most:
        yield "'min' is larger than 'max'"
    under = document.get("under", [])
    if not isinstance(under, list) or not all(isinstance(r, str) and is_plain_path(r.rstrip("/")) for r in under):
        yield "'under' must be a list of absolute directories, not the root"
    if "max_length" in document and not _is_integer(document["max_length"], 1, MAX_VALUE):
        yield f"'max_length' must be 1 to {MAX_VALUE} bytes"
    if not isinstance(document.get("optional", False), bool):
        yield "'optional' must be true or false"
    elif document.get("optional") and document.get("default") is not None:
        yield "'optional' and 'default' exclude each other"


def _problems_of_pattern(pattern: Any) -> Iterator[str]:
    if not isinstance(pattern, str) or not is_passable(pattern) or len(pattern) > MAX_PATTERN:
        yield f"'pattern' must be a string of at most {MAX_PATTERN} characters"
        return
    try:
        compile_pattern(pattern)
    except re2.error as error:
        text = error.args[0].decode("utf-8", "replace") if isinstance(error.args[0], bytes) else str(error)
        yield f"'pattern' is not one that RE2 takes: {text}"


def _is_integer(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
