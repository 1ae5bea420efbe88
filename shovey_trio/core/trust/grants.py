"""Grants: which commands an operator may start and cancel, and where.

An operator without grants is not narrowed; with the first one, only what some grant covers is allowed. Admins are never
narrowed. A grant names its nodes as a job does, and says in one text how:

====================================  ================================================================
``web-1``, ``web-*``                  a node's name, or a pattern of names (``*``, ``?``, ``[a-z]``)
``role=web``, ``role=web,env=prod``   tags, all of them
``name:web-* AND NOT tags:canary``    a search; see ``core.jobs.search``
====================================  ================================================================

Which of the three it is, the text shows: a search begins with one of its fields, and no name has a ``=``. Patterns are
over the whole name or command, case and all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from shovey_trio.core.errors import InvalidRequest
from shovey_trio.core.jobs.model import Grant, Node, Role
from shovey_trio.core.jobs.targeting import Match, Search, Tagged, predicate

_SEARCH: Final = re.compile(r"\(*\s*(NOT\s+)?\(*\s*(name|tags|roles?|chef_environment|\*)\s*:")
# What names consist of, and what a pattern has besides.
_PATTERN: Final = re.compile(r"[A-Za-z0-9._:*?\[\]!-]+")
_KEY: Final = re.compile(r"[^\s:]+")
# Refused nodes that a rule spells out.
_SHOWN: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantDecision:
    """Whether somebody may, and which rule says so.

    Attributes:
        refused: the nodes that no grant covers, in the order asked for.
    """

    rule: str
    refused: tuple[str, ...] = ()

    @property
    def is_allowed(self) -> bool:
        return not self.refused


def parse_granted_nodes(text: str) -> Match | Tagged | Search:
    """How the text of a grant selects nodes.

    Raises:
        InvalidRequest: it is nothing that could select one; the message says what would.
    """
    selection = _selection(text)
    predicate(selection)  # a search that cannot be read says so here
    return selection


def decide_grants(role: Role, grants: Sequence[Grant], command: str, nodes: Iterable[Node]) -> GrantDecision:
    """Judges a command on nodes for a principal of this role that has these grants."""
    if role is not Role.OPERATOR:
        return GrantDecision(rule=f"role {role.value}: not narrowed by grants")
    if not grants:
        return GrantDecision(rule="role operator without grants: not narrowed")
    fitting = [grant for grant in grants if fnmatchcase(command, grant.command)]
    if not fitting:
        return GrantDecision(
            rule=f"no grant covers the command {command!r}", refused=tuple(node.name for node in nodes)
        )
    covers = [_covers(grant) for grant in fitting]
    refused = tuple(node.name for node in nodes if not any(holds(node) for holds in covers))
    if refused:
        return GrantDecision(rule=f"no grant for {command!r} covers {', '.join(refused[:_SHOWN])}", refused=refused)
    return GrantDecision(rule="; ".join(f"grant {grant.command!r} on {grant.nodes!r}" for grant in fitting))


def _covers(grant: Grant) -> Callable[[Node], bool]:
    try:
        return predicate(_selection(grant.nodes))
    except InvalidRequest:
        return lambda _node: False  # from before such texts were refused: it has never covered anything


def _selection(text: str) -> Match | Tagged | Search:
    if _SEARCH.match(text):
        return Search(query=text)
    if "=" in text:
        pairs = [part.strip().partition("=") for part in text.split(",")]
        if not all(_KEY.fullmatch(key) and value for key, _, value in pairs):
            raise InvalidRequest(
                f"nodes {text!r}: expected KEY=VALUE, several with commas, or a search such as tags:role=web",
                field="nodes",
            )
        return Tagged(tags={key: value for key, _, value in pairs})
    if not _PATTERN.fullmatch(text):
        raise InvalidRequest(
            f"nodes {text!r}: no node has such a name; expected a name or a pattern ('web-*'), tags (role=web), or a "
            "search (name:web-* AND role:web)",
            field="nodes",
        )
    return Match(pattern=text)
