"""Searching nodes: the documented subset of Chef's query language (Lucene's syntax), parsed by luqum.

=====================================  ==============================================================
``name:web-1``, ``name:web-*.eu``      the node's name; ``*`` and ``?`` are wildcards
``tags:canary``, ``tags:role=web``     a tag's key, or key and value; wildcards as well
``role:web``, ``roles:web``            one of the roles: of the tag ``roles`` (``base,web``) or ``role``
``chef_environment:prod``              the value of the tag ``chef_environment``
``name:(web-1 OR web-2)``              several values of one field
``a AND b``, ``a OR b``, ``NOT a``     of whole conditions, with parentheses; ``NOT`` may begin a query
``name:"…"``, ``\\*``                   quoted text and escaped characters have no wildcards
``*:*``                                every node
=====================================  ==============================================================

Whatever else the syntax has (ranges, fuzziness, boosts, regular expressions, ``+`` and ``-``, other fields, words
without a field or an operator between them) is an ``InvalidRequest``: an empty answer would look like one.
Comparison is case-sensitive.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import translate
from typing import Final
from urllib.parse import unquote

from luqum.exceptions import ParseError
from luqum.parser import parser
from luqum.tree import (
    AndOperation,
    BaseGroup,
    Item,
    Not,
    OrOperation,
    Phrase,
    SearchField,
    UnknownOperation,
    Word,
)

from shovey_trio.core.errors import InvalidRequest
from shovey_trio.core.jobs.model import Node

Predicate = Callable[[Node], bool]

#: Between the roles in the value of a tag ``roles``.
ROLE_SEPARATOR: Final = ","

_MAX_QUERY: Final = 4_096
# Parentheses and operators inside one another; a predicate is as many calls deep.
_MAX_DEPTH: Final = 50
_FIELDS: Final = "name, tags, role and chef_environment"
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)
_PERCENT: Final = re.compile(r"%[0-9A-Fa-f]{2}")


def parse_search(query: str) -> Predicate:
    """What a query asks of a node.

    Raises:
        InvalidRequest: it is not a query, or uses what is not supported; the message says what.
    """
    if not query.strip():
        raise _unsupported("an empty query; *:* finds every node")
    if len(query) > _MAX_QUERY:
        raise _unsupported(f"a query of more than {_MAX_QUERY} characters")
    try:
        return _condition(parser.parse(query), None, 0)
    except ParseError as error:
        raise InvalidRequest(f"the search {query!r} cannot be read: {error}", field="search") from None
    except (ArithmeticError, ValueError, RecursionError):
        # luqum's own: a number behind ~ or ^ that is none, and parts too deep inside one another to be shown.
        raise InvalidRequest(f"the search {query[:100]!r} cannot be read", field="search") from None


def unescape_query(query: str) -> str:
    """A query as it was meant: knife escapes it twice, so one more layer is taken off where one is left."""
    return unquote(query) if _PERCENT.search(query) else query


def _condition(item: Item, field: str | None, depth: int) -> Predicate:
    if depth > _MAX_DEPTH:
        raise _unsupported(f"more than {_MAX_DEPTH} conditions inside one another")
    match item:
        case AndOperation(operands=operands):
            every = [_condition(operand, field, depth + 1) for operand in operands]
            return lambda node: all(holds(node) for holds in every)
        case OrOperation(operands=operands):
            any_ = [_condition(operand, field, depth + 1) for operand in operands]
            return lambda node: any(holds(node) for holds in any_)
        case Not(a=operand):
            negated = _condition(operand, field, depth + 1)
            return lambda node: not negated(node)
        case BaseGroup(expr=expression):
            return _condition(expression, field, depth + 1)
        case SearchField(name=name, expr=expression) if field is None:
            return _condition(expression, name, depth + 1)
        case Word() | Phrase() if field is None:
            raise _unsupported(f"{item.value!r} without a field, such as name:{item.value}")
        case Word() | Phrase():
            return _term(field, item)
        case UnknownOperation():
            raise _unsupported(f"{str(item).strip()!r} without AND or OR between its parts")
        case _:
            raise _unsupported(repr(str(item).strip()))


def _term(field: str | None, item: Word | Phrase) -> Predicate:
    match field, item:
        case "*", Word(value="*"):
            return lambda _node: True
        case "name", _:
            matches = _pattern(item)
            return lambda node: matches(node.name)
        case "tags", _:
            matches = _pattern(item)
            return lambda node: any(matches(key) or matches(f"{key}={value}") for key, value in node.tags.items())
        case "chef_environment", _:
            matches = _pattern(item)
            return lambda node: "chef_environment" in node.tags and matches(node.tags["chef_environment"])
        case "role" | "roles", _:
            matches = _pattern(item)
            return lambda node: any(matches(role) for role in _roles(node))
        case _:
            raise _unsupported(f"the field {field!r}; there are {_FIELDS}, as in tags:{field}=VALUE")


def _roles(node: Node) -> list[str]:
    """Chef's word for what a node is for. An agent of ours says it by its tags; of an old node it was imported."""
    values = [node.tags[key] for key in ("role", "roles") if key in node.tags]
    return [role for value in values for role in value.split(ROLE_SEPARATOR) if role]


def _pattern(item: Word | Phrase) -> Callable[[str], bool]:
    """A term as a test of a text. Wildcards become those of ``fnmatch``, which does not backtrack over a ``*``."""
    if isinstance(item, Phrase):
        exact = _ESCAPED.sub(r"\1", item.value[1:-1])
        return lambda text: text == exact
    pieces = re.split(r"(\\.|[*?])", item.value, flags=re.DOTALL)
    pattern = "".join(
        piece if piece in ("*", "?") else _literal(piece[1:] if piece.startswith("\\") else piece) for piece in pieces
    )
    compiled = re.compile(translate(pattern))
    return lambda text: compiled.match(text) is not None


def _literal(text: str) -> str:
    """A text in which ``fnmatch`` finds nothing special."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in text)


def _unsupported(what: str) -> InvalidRequest:
    return InvalidRequest(f"the search cannot have {what}", field="search")
