"""Grants narrow operators, and nobody else."""

from __future__ import annotations

from shovey_trio.core.jobs.model import Grant, Role
from shovey_trio.core.trust.grants import decide_grants


def test_patterns_are_whole_and_case_counts() -> None:
    grant = Grant(organization="o", user="u", command="a[bc]?", nodes="web-*")
    for command, node, allowed in (
        ("abx", "web-1", True),
        ("abxx", "web-1", False),
        ("adx", "web-1", False),
        ("Abx", "web-1", False),
        ("abx", "xweb-1", False),
    ):
        assert decide_grants(Role.OPERATOR, [grant], command, [node]).is_allowed is allowed
    assert decide_grants(Role.ADMIN, [grant], "other", ["db"]).is_allowed


def test_operator_without_grants_is_not_narrowed_and_one_with_any_is() -> None:
    grant = Grant(organization="o", user="u", command="a", nodes="web-1")
    assert decide_grants(Role.OPERATOR, [], "b", ["web-1"]).is_allowed
    assert not decide_grants(Role.OPERATOR, [grant], "b", ["web-1"]).is_allowed


def test_every_node_must_be_covered_by_some_grant() -> None:
    grants = [Grant(organization="o", user="u", command="a", nodes=nodes) for nodes in ("web-*", "db-1")]
    assert decide_grants(Role.OPERATOR, grants, "a", ["web-1", "db-1"]).is_allowed
    decision = decide_grants(Role.OPERATOR, grants, "a", ["web-1", "db-2", "db-1", "x"])
    assert decision.refused == ("db-2", "x")
    assert "db-2, x" in decision.rule
