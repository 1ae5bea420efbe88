"""Grants narrow operators, and nobody else; their nodes are selected as a job's are."""

from __future__ import annotations

import pytest

from shovey_trio.core.errors import InvalidRequest
from shovey_trio.core.jobs.model import Grant, Node, Role
from shovey_trio.core.jobs.targeting import Match, Search, Tagged
from shovey_trio.core.trust.grants import decide_grants, parse_granted_nodes


def node(name: str, **tags: str) -> Node:
    return Node(name=name, organization="o", tags=tags, enrolled_at=1.0, presence_since=1.0)


def granted(command: str, nodes: str) -> Grant:
    return Grant(organization="o", user="u", command=command, nodes=nodes)


def test_patterns_are_whole_and_case_counts() -> None:
    grant = granted("a[bc]?", "web-*")
    for command, name, allowed in (
        ("abx", "web-1", True),
        ("abxx", "web-1", False),
        ("adx", "web-1", False),
        ("Abx", "web-1", False),
        ("abx", "xweb-1", False),
        ("abx", "Web-1", False),
    ):
        assert decide_grants(Role.OPERATOR, [grant], command, [node(name)]).is_allowed is allowed


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.OPERATOR])
def test_grants_narrow_operators_alone(role: Role) -> None:
    decision = decide_grants(role, [granted("a", "web-1")], "other", [node("db")])
    assert (decision.refused, decision.rule) == ((), f"role {role}: not narrowed by grants")


def test_operator_without_grants_is_not_narrowed_and_one_with_any_is() -> None:
    assert decide_grants(Role.OPERATOR, [], "b", [node("web-1")]).is_allowed
    refused = decide_grants(Role.OPERATOR, [granted("a", "web-1")], "b", [node("web-1"), node("web-2")])
    assert refused.refused == ("web-1", "web-2")
    assert refused.rule == "no grant covers the command 'b'"


def test_every_node_must_be_covered_by_some_grant() -> None:
    grants = [granted("a", "web-*"), granted("a", "db-1")]
    assert decide_grants(Role.OPERATOR, grants, "a", [node("web-1"), node("db-1")]).is_allowed
    decision = decide_grants(Role.OPERATOR, grants, "a", [node(name) for name in ("web-1", "db-2", "db-1", "x")])
    assert decision.refused == ("db-2", "x")
    assert decision.rule == "no grant for 'a' covers db-2, x"


def test_a_refusal_names_all_refused_nodes_and_spells_out_twenty() -> None:
    nodes = [node(f"n{number:02}") for number in range(30)]
    decision = decide_grants(Role.OPERATOR, [granted("a", "x")], "a", nodes)
    assert len(decision.refused) == 30
    assert decision.rule.endswith("n18, n19")


def test_the_rule_names_the_grants_that_fit_the_command() -> None:
    grants = [granted("a", "*"), granted("b", "*"), granted("?", "role=web")]
    decision = decide_grants(Role.OPERATOR, grants, "a", [node("x")])
    assert decision.rule == "grant 'a' on '*'; grant '?' on 'role=web'"


@pytest.mark.parametrize(
    ("text", "covered"),
    [
        ("web-*", {"web-1", "web-2"}),
        ("*", {"web-1", "web-2", "db-1"}),
        ("role=web", {"web-1"}),
        ("role=web,env=prod", {"web-1"}),
        ("role=web, env=test", set()),
        ("name:web-*", {"web-1", "web-2"}),
        ("name:web-* AND NOT role:web", {"web-2"}),
        ("NOT role:web", {"web-2", "db-1"}),
        ("(role:web OR name:db-1)", {"web-1", "db-1"}),
        ("tags:role=web", {"web-1"}),
        ("roles:web", {"web-1"}),
        ("chef_environment:prod", {"db-1"}),
        ("*:*", {"web-1", "web-2", "db-1"}),
    ],
)
def test_a_grant_takes_the_selectors_that_a_job_takes(text: str, covered: set[str]) -> None:
    nodes = [node("web-1", role="web", env="prod"), node("web-2"), node("db-1", chef_environment="prod")]
    parse_granted_nodes(text)
    decision = decide_grants(Role.OPERATOR, [granted("a", text)], "a", nodes)
    assert {one.name for one in nodes} - set(decision.refused) == covered


@pytest.mark.parametrize(
    "text", ["web-1,web-2", "web 1", "role=", "=web", "role=web,", "name:", "name:a b", "tag:role=web AND x", "n\u00e4"]
)
def test_a_text_that_could_select_nothing_is_refused_and_covers_nothing(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_granted_nodes(text)
    assert decide_grants(Role.OPERATOR, [granted("a", text)], "a", [node("web-1", role="web")]).refused == ("web-1",)


def test_what_a_text_means_is_seen_by_its_form() -> None:
    assert parse_granted_nodes("acme:n2") == Match(pattern="acme:n2")
    assert parse_granted_nodes("rack=4,role=web") == Tagged(tags={"rack": "4", "role": "web"})
    assert parse_granted_nodes("(NOT name:a)") == Search(query="(NOT name:a)")
