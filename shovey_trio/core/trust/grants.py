"""Grants: which commands an operator may start and cancel, and where.

An operator without grants is not narrowed; with the first one, only what some grant covers is allowed. Admins are never
narrowed. Patterns are those of ``core.jobs.targeting``: ``*``, ``?`` and ``[a-z]``, over the whole name, case and all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from shovey_trio.core.jobs.model import Grant, Role


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


def decide_grants(role: Role, grants: Sequence[Grant], command: str, nodes: Iterable[str]) -> GrantDecision:
    """Judges a command on nodes for a principal of this role that has these grants."""
    if role is not Role.OPERATOR:
        return GrantDecision(rule=f"role {role.value}: not narrowed by grants")
    if not grants:
        return GrantDecision(rule="role operator without grants: not narrowed")
    fitting = [grant for grant in grants if fnmatchcase(command, grant.command)]
    if not fitting:
        return GrantDecision(rule=f"no grant covers the command {command!r}", refused=tuple(nodes))
    refused = tuple(node for node in nodes if not any(fnmatchcase(node, grant.nodes) for grant in fitting))
    if refused:
        return GrantDecision(rule=f"no grant for {command!r} covers {', '.join(refused[:20])}", refused=refused)
    return GrantDecision(rule="; ".join(f"grant {grant.command!r} on {grant.nodes!r}" for grant in fitting))
