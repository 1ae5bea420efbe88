#!/usr/bin/env python3
"""Shows that each wing could be taken away: without its folders, only composition would miss something.

A wing is a kind of node with the protocol it speaks (docs/architecture.md). Three rules, over the graph of imports and
over the text of the modules:

* nothing outside a wing imports it or names its modules, but for composition and the tables of commands;
* a wing imports no other wing;
* the heart does not even say what a wing is called.

Usage: tools/check_wings.py; prints what breaks a rule, and exits with 1 then.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grimp

ROOTS = ("shovey_trio", "shovey_agent")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wing:
    """A wing.

    Attributes:
        packages: its folders, as modules.
        words: a pattern for what its nodes and their server are called.
    """

    packages: Sequence[str]
    words: str


WINGS: Mapping[str, Wing] = {
    "shovey": Wing(packages=("shovey_trio.shovey", "shovey_agent.shovey"), words=r"schob|goiardi|legacy"),
}
COMPOSITION = frozenset(
    {"shovey_trio.controller.composition", "shovey_trio.controller.wings", "shovey_agent.cli"},
)
# Modules that name a wing's in strings, so that it is imported when it is called and not before.
TABLES = frozenset({"shovey_trio.cli.controller.main"})
HEART = (
    "shovey_trio.application",
    "shovey_trio.core.jobs",
    "shovey_trio.core.trust",
    "shovey_trio.nursery",
    "shovey_trio.routes",
    "shovey_trio.rpc",
    "shovey_trio.serf",
    "shovey_trio.store",
)
# What a database was like before is part of it.
_NOT_HEART = "shovey_trio.store.sql.migrations"


def broken_rules(wings: Mapping[str, Wing] = WINGS, composition: frozenset[str] = COMPOSITION) -> Iterator[str]:
    """One line for everything that breaks a rule."""
    graph = grimp.build_graph(*ROOTS)
    for name, wing in wings.items():
        others = [package for other in wings.values() if other is not wing for package in other.packages]
        inside = {module for module in graph.modules if _is_in(module, wing.packages)}
        if not inside:
            yield f"there is no wing {name}: {', '.join(wing.packages)}"
        for module in sorted(graph.modules - inside):
            imported = sorted(graph.find_modules_directly_imported_by(module) & inside)
            if imported and _is_in(module, others):
                yield f"a wing imports another: {module} → {', '.join(imported)}"
            elif imported and module not in composition:
                yield f"{module} imports the wing {name}: {', '.join(imported)}"
        yield from _named(graph.modules - inside, name, wing, composition)


def _named(modules: set[str], name: str, wing: Wing, composition: frozenset[str]) -> Iterator[str]:
    dotted = re.compile("|".join(rf"\b{re.escape(package)}\b" for package in wing.packages))
    words = re.compile(wing.words, re.IGNORECASE)
    for module in sorted(modules):
        if module.endswith(("_pb2", "_pb2_grpc")):
            continue
        text = _source(module)
        if dotted.search(text) and module not in composition | TABLES:
            yield f"{module} names modules of the wing {name}"
        if _is_in(module, HEART) and not _is_in(module, (_NOT_HEART,)):
            found = sorted({match.lower() for match in words.findall(text)})
            if found:
                yield f"{module} knows the wing {name}: {', '.join(found)}"


def _is_in(module: str, packages: Sequence[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    return "" if spec is None or spec.origin is None else Path(spec.origin).read_text(encoding="utf-8")


def main() -> int:
    """Entry point."""
    broken = list(broken_rules())
    for line in broken:
        print(line)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
