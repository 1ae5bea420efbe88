"""Which nodes a job is for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shovey_trio.core.errors import NoTargets, UnknownNodes
from shovey_trio.core.jobs.model import Node
from shovey_trio.core.jobs.targeting import AllNodes, Match, Names, Selection, Tagged, resolve


def _node(name: str, **tags: str) -> Node:
    return Node(name=name, organization="default", tags=tags, enrolled_at=0.0, presence_since=0.0)


NODES = {
    node.name: node
    for node in (
        _node("web-2", role="web", env="prod"),
        _node("web-1", role="web"),
        _node("db", role="db"),
        _node("Web-3"),
    )
}


@pytest.mark.parametrize(
    ("selection", "names"),
    [
        (Names(names=("web-2", "db", "web-2")), ("db", "web-2")),
        (AllNodes(), ("Web-3", "db", "web-1", "web-2")),
        (Match(pattern="web-*"), ("web-1", "web-2")),
        (Match(pattern="web-[2-9]"), ("web-2",)),
        (Tagged(tags={"role": "web"}), ("web-1", "web-2")),
        (Tagged(tags={"role": "web", "env": "prod"}), ("web-2",)),
    ],
)
def test_targets_are_sorted_and_each_is_named_once(selection: Selection, names: tuple[str, ...]) -> None:
    assert resolve(selection, NODES) == names


def test_one_unknown_name_refuses_all_and_is_named() -> None:
    with pytest.raises(UnknownNodes, match="no such node: nope, zzz") as caught:
        resolve(Names(names=("web-1", "zzz", "nope")), NODES)
    assert caught.value.details["nodes"] == "nope,zzz"


def test_many_unknown_names_are_not_all_spelled_out() -> None:
    with pytest.raises(UnknownNodes) as caught:
        resolve(Names(names=tuple(f"n{i:03}" for i in range(30))), NODES)
    assert caught.value.message.endswith("n019 …")
    assert caught.value.details["nodes"].count(",") == 29


@pytest.mark.parametrize(
    ("selection", "why"),
    [
        (Names(names=()), "the list of nodes is empty"),
        (Match(pattern="x*"), "no node matches 'x*'"),
        (Tagged(tags={"role": "x", "a": "b"}), "no node carries a=b, role=x"),
    ],
)
def test_a_selection_of_nothing_says_why(selection: Selection, why: str) -> None:
    with pytest.raises(NoTargets) as caught:
        resolve(selection, NODES)
    assert caught.value.message == why


def test_all_of_no_nodes_is_nothing() -> None:
    with pytest.raises(NoTargets, match="no node is registered"):
        resolve(AllNodes(), {})


@given(st.lists(st.sampled_from(sorted(NODES)), min_size=1))
def test_naming_nodes_in_any_order_and_number_gives_the_same_set(names: list[str]) -> None:
    assert resolve(Names(names=tuple(names)), NODES) == tuple(sorted(set(names)))
