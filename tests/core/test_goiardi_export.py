"""Exports that are none, or have entries that make no sense; a real one is imported in ``tests/rest``."""

from __future__ import annotations

import pytest

from shovey_trio.core.errors import InvalidRequest
from shovey_trio.shovey.protocol.export import read_export


@pytest.mark.parametrize("document", [None, [], {}, {"Data": []}, {"Data": {}}, {"MajorVersion": 2, "Data": {}}])
def test_file_that_is_no_export_is_an_invalid_request(document: object) -> None:
    with pytest.raises(InvalidRequest):
        read_export(document, organization="default", now=0.0)


def test_entries_that_make_no_sense_are_left_out_with_a_reason() -> None:
    document = {
        "MajorVersion": 1,
        "Data": {"client": [{}, {"name": "x", "public_key": "?"}, 5], "user": None, "node": [{"name": 5}]},
    }
    found = read_export(document, organization="default", now=0.0)
    assert (found.principals, found.nodes) == ((), {})
    assert [name for name, _ in found.skipped] == ["?", "x"]


def test_what_can_be_searched_for_of_a_node_is_kept() -> None:
    node = {
        "name": "web-1",
        "chef_environment": "prod",
        "run_list": ["role[web]", "recipe[nginx]", 7, "role[]"],
        "normal": {"tags": ["canary", "", "x" * 300, 5, "line\nfeed", "roles"]},
        "automatic": {"roles": ["web", "base"], "ipaddress": "10.0.0.1"},
    }
    nodes = [node, {"name": "bare"}, {"name": "odd", "normal": [], "automatic": "x", "run_list": {}}]
    found = read_export({"MajorVersion": 1, "Data": {"node": nodes}}, organization="default", now=0.0)
    assert found.nodes == {
        "bare": {},
        "odd": {},
        "web-1": {"canary": "", "roles": "base,web", "chef_environment": "prod"},
    }


def test_node_with_very_many_tags_keeps_its_environment_and_some_of_them() -> None:
    node = {"name": "n", "chef_environment": "prod", "normal": {"tags": [f"t{number}" for number in range(1000)]}}
    found = read_export({"MajorVersion": 1, "Data": {"node": [node]}}, organization="default", now=0.0)
    assert len(found.nodes["n"]) == 64
    assert found.nodes["n"]["chef_environment"] == "prod"
