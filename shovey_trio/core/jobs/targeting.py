"""Which nodes a job is for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from shovey_trio.core.errors import NoTargets, UnknownNodes
from shovey_trio.core.jobs.model import Node

# Names of unknown nodes that an error message spells out.
_NAMES_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """These nodes, by name."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AllNodes:
    """Every registered node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Nodes whose name matches a shell-style pattern (``* ? [a-z]``, case-sensitive)."""

    pattern: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tagged:
    """Nodes that carry every one of these tags."""

    tags: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """Nodes that a query in the subset of Lucene's syntax finds; see ``core.jobs.search``."""

    query: str


Selection = Names | AllNodes | Match | Tagged | Search


def resolve(selection: Selection, registered: Mapping[str, Node], *, accept_unknown: bool = False) -> tuple[str, ...]:
    """The targeted names: sorted, each once.

    Args:
        selection: what the operator asked for.
        registered: the organization's nodes by name.
        accept_unknown: whether a name that no node has is a target all the same.

    Raises:
        UnknownNodes: a name that no node has.
        NoTargets: nothing was named, or nothing matched.
        InvalidRequest: the query of a search cannot be read.
    """
    match selection:
        case Names(names=names) if accept_unknown:
            chosen: Iterable[str] = names
            nothing = "the list of nodes is empty"
        case Names(names=names):
            unknown = sorted({name for name in names if name not in registered})
            if unknown:
                shown = ", ".join(unknown[:_NAMES_SHOWN]) + (" …" if len(unknown) > _NAMES_SHOWN else "")
                raise UnknownNodes(f"no such node: {shown}", nodes=",".join(unknown[:1000]))
            chosen = names
            nothing = "the list of nodes is empty"
        case AllNodes():
            chosen, nothing = registered, "no node is registered"
        case Match() | Tagged() | Search():
            holds = predicate(selection)
            chosen = (name for name, node in registered.items() if holds(node))
            nothing = _nothing(selection)
    targets = tuple(sorted(set(chosen)))
    if not targets:
        raise NoTargets(nothing)
    return targets


def predicate(selection: Match | Tagged | Search) -> Callable[[Node], bool]:
    """What a selection asks of a node.

    Raises:
        InvalidRequest: the query of a search cannot be read.
    """
    match selection:
        case Match(pattern=pattern):
            return lambda node: fnmatchcase(node.name, pattern)
        case Tagged(tags=tags):
            return lambda node: has_tags(node, tags)
        case Search(query=query):
            # Imported here: agents and clients use this module, and have no parser.
            from shovey_trio.core.jobs.search import parse_search

            return parse_search(query)


def has_tags(node: Node, tags: Mapping[str, str]) -> bool:
    """Whether ``node`` carries every one of ``tags`` with exactly that value."""
    return all(node.tags.get(key) == value for key, value in tags.items())


def _nothing(selection: Match | Tagged | Search) -> str:
    match selection:
        case Match(pattern=pattern):
            return f"no node matches {pattern!r}"
        case Tagged(tags=tags):
            return "no node carries " + ", ".join(f"{key}={value}" for key, value in sorted(tags.items()))
        case Search(query=query):
            return f"no node is found by {query!r}"
