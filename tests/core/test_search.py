"""The subset of Lucene's syntax: what it finds, and that everything else is refused."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shovey_trio.core.errors import InvalidRequest
from shovey_trio.core.jobs.model import Node
from shovey_trio.core.jobs.search import parse_search, unescape_query

FLEET: Mapping[str, Mapping[str, str]] = {
    "web-1.eu": {"role": "web", "canary": ""},
    "web-2.eu": {"role": "web"},
    "web-1.us": {"role": "web", "os": "debian"},
    "db-1.eu": {"role": "db", "os": "debian"},
    "org:odd[1]*": {"roles": "base,db-slave", "chef_environment": "prod"},
}
NODES = [
    Node(name=name, organization="default", tags=tags, enrolled_at=0.0, presence_since=0.0)
    for name, tags in FLEET.items()
]


def found(query: str) -> list[str]:
    holds = parse_search(query)
    return [node.name for node in NODES if holds(node)]


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("*:*", list(FLEET)),
        ("name:web-1.eu", ["web-1.eu"]),
        ("name:WEB-1.eu", []),
        ("name:web-*", ["web-1.eu", "web-2.eu", "web-1.us"]),
        ("name:web-?.eu", ["web-1.eu", "web-2.eu"]),
        ("name:*1*", ["web-1.eu", "web-1.us", "db-1.eu", "org:odd[1]*"]),
        ("tags:canary", ["web-1.eu"]),
        ("tags:role=web", ["web-1.eu", "web-2.eu", "web-1.us"]),
        ("tags:role=d*", ["db-1.eu"]),
        ("tags:os", ["web-1.us", "db-1.eu"]),
        ("tags:role=web AND NOT tags:canary", ["web-2.eu", "web-1.us"]),
        ("NOT tags:role", ["org:odd[1]*"]),
        ("NOT tags:os", ["web-1.eu", "web-2.eu", "org:odd[1]*"]),
        ("NOT tags:role=*", ["org:odd[1]*"]),
        ("name:db* OR name:web-2*", ["web-2.eu", "db-1.eu"]),
        ("name:*.eu AND (tags:canary OR tags:os)", ["web-1.eu", "db-1.eu"]),
        ("name:*.us OR name:*.eu AND tags:os", ["web-1.us", "db-1.eu"]),
        ("name:(web-1.eu OR db-*)", ["web-1.eu", "db-1.eu"]),
        ("role:web", ["web-1.eu", "web-2.eu", "web-1.us"]),
        ("roles:base OR role:db", ["db-1.eu", "org:odd[1]*"]),
        ("roles:db*", ["db-1.eu", "org:odd[1]*"]),
        ("role:slave", []),
        ("chef_environment:prod", ["org:odd[1]*"]),
        ("chef_environment:pro? AND NOT role:web", ["org:odd[1]*"]),
        (r"name:org\:odd\[1\]\*", ["org:odd[1]*"]),
        ('name:"org:odd[1]*"', ["org:odd[1]*"]),
        ('name:"web-*"', []),
        (r"name:web\-1.eu", ["web-1.eu"]),
    ],
)
def test_query_finds(query: str, names: list[str]) -> None:
    assert found(query) == names


@pytest.mark.parametrize(
    "query",
    [
        "",
        " ",
        "web-1",
        "*",
        "ipaddress:10.*",
        "name:[a TO b]",
        "name:>3",
        "name:web~2",
        "name:web^2",
        "name:/web.*/",
        "+name:web",
        "-name:web",
        "name:a name:b",
        "name:(a b)",
        "name:a AND",
        "AND",
        "(name:a",
        "name:",
        "name:tags:a",
        'name:"a',
        "*:a",
        "{",
        "(" * 60 + "name:a" + ")" * 60,
        "name:" + "a" * 5_000,
    ],
)
def test_what_is_not_supported_is_an_error_and_never_an_empty_answer(query: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_search(query)
    assert refused.value.http == 400


def test_pattern_of_many_stars_takes_no_time() -> None:
    holds = parse_search("name:" + "*a" * 1_000 + "b")
    assert not holds(Node(name="a" * 128, organization="default", enrolled_at=0.0, presence_since=0.0))


@given(st.text(alphabet='name:tgs*?()"\\ANDORT/[]{}^~+->< é%', max_size=40))
def test_any_text_is_a_query_or_an_invalid_request(query: str) -> None:
    try:
        holds = parse_search(query)
    except InvalidRequest:
        return
    assert isinstance(holds(NODES[0]), bool)


@pytest.mark.parametrize(
    ("query", "meant"),
    [("name%3Afoobar.local", "name:foobar.local"), ("name:web*", "name:web*"), ("name:100%", "name:100%")],
)
def test_query_that_was_escaped_twice_is_unescaped_once_more(query: str, meant: str) -> None:
    assert unescape_query(query) == meant
