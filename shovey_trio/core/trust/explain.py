"""The answer to "would this run there, and which rule decides"."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """What a rule says."""

    ALLOWED = "allowed"
    REFUSED = "refused"
    UNKNOWN = "unknown"


class ExplainRule(StrEnum):
    """The rules, in the order in which they are looked at."""

    ROLE = "role"
    GRANT = "grant"
    NODE = "node"
    ROUTE = "route"
    WHITELIST = "whitelist"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainStep:
    """What one rule says, and why."""

    rule: ExplainRule
    verdict: Verdict
    detail: str


def overall(steps: Iterable[ExplainStep]) -> Verdict:
    """Refused if any rule refuses; unknown if one cannot be judged now."""
    verdicts = {step.verdict for step in steps}
    if Verdict.REFUSED in verdicts:
        return Verdict.REFUSED
    return Verdict.UNKNOWN if Verdict.UNKNOWN in verdicts else Verdict.ALLOWED
