"""Exports that are none, or have entries that make no sense; a real one is imported in ``tests/rest``."""

from __future__ import annotations

import pytest

from shovey_trio.core.errors import InvalidRequest
from shovey_trio.core.goiardi_export import read_export


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
    assert (found.principals, found.nodes) == ((), ())
    assert [name for name, _ in found.skipped] == ["?", "x"]
