"""Argument vectors with named places: ``["tar", "-C", "{directory}", ["--exclude={skip}"], "."]``.

A place is ``{name}``, as a whole element or inside one; ``{{`` and ``}}`` are braces. What is put into a place is never
split, quoted or read again: one element of the template is one argument of the program. A list inside the list is a
group: it is left out as a whole when one of its arguments is not given, and so is an element that stands alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from shovey_trio.core.jobs.command_input import NAME
from shovey_trio.core.whitelist.values import is_passable

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]|[^{}]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A place for the argument of this name."""

    name: str


Element = tuple[str | Slot, ...]
"""One argument of the program: text and places, joined without anything between them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """An argument vector to be filled; groups in order, each of one or more elements."""

    groups: tuple[tuple[Element, ...], ...]

    def fill(self, values: Mapping[str, str]) -> tuple[str, ...]:
        """The argument vector for these values; groups that lack one are left out."""
        return tuple(
            "".join(part if isinstance(part, str) else values[part.name] for part in element)
            for group in self.groups
            if all(slot.name in values for slot in _slots(group))
            for element in group
        )

    def names(self) -> frozenset[str]:
        """Every argument that has a place."""
        return frozenset(slot.name for group in self.groups for slot in _slots(group))

    def leading(self) -> frozenset[str]:
        """Arguments whose value begins an argument of the program, where a dash would make it an option."""
        found = (element[0] for group in self.groups for element in group if element)
        return frozenset(part.name for part in found if isinstance(part, Slot))


def template_problems(argv: Any, declared: frozenset[str]) -> Iterator[str]:
    """Yields everything that is wrong with a template as written."""
    if not isinstance(argv, list) or not argv:
        yield "'argv' must be a list that begins with the program"
        return
    words = [word for item in argv for word in (item if isinstance(item, list) else [item])]
    if not all(isinstance(word, str) for word in words) or [] in argv:
        yield "'argv' must be a list of strings, and of lists of strings that belong together"
        return
    if not isinstance(argv[0], str) or not argv[0]:
        yield "names no program"
    elif any(isinstance(part, Slot) for part in _parse(argv[0])):
        yield "the program itself cannot be an argument"
    if any(not is_passable(word) for word in words):
        yield "an argument has a NUL or a lone surrogate, which no program can be given"
    used: set[str] = set()
    for word in words:
        for token in _TOKEN.finditer(word):
            if token[0] in ("{", "}") or (token[1] is not None and not NAME.fullmatch(token[1])):
                yield f"{word[:80]!r}: a brace that is no {{name}} is written twice"
                break
            elif token[1] is not None:
                used.add(token[1])
    if unknown := sorted(used - declared):
        yield f"'argv' has places for {', '.join(unknown)}, which 'args' does not describe"
    if unused := sorted(declared - used):
        yield f"'args' describes {', '.join(unused)}, which has no place in 'argv'"


def read_template(argv: list[Any]) -> Template:
    """The template of an ``argv`` that ``template_problems`` has nothing to say of."""
    groups = (item if isinstance(item, list) else [item] for item in argv)
    return Template(groups=tuple(tuple(_parse(word) for word in group) for group in groups))


def _parse(word: str) -> Element:
    parts: list[str | Slot] = []
    for token in _TOKEN.finditer(word):
        text = {"{{": "{", "}}": "}"}.get(token[0], token[0])
        if token[1] is not None:
            parts.append(Slot(name=token[1]))
        elif parts and isinstance(parts[-1], str):
            parts[-1] += text
        else:
            parts.append(text)
    return tuple(parts)


def _slots(group: tuple[Element, ...]) -> Iterator[Slot]:
    for element in group:
        yield from (part for part in element if isinstance(part, Slot))
