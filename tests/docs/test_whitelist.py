"""docs/whitelist.md says what the whitelist is: its examples are valid, its tables complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shovey_trio.core.whitelist import entry as whitelist_entry
from shovey_trio.core.whitelist import values as whitelist_values
from shovey_trio.core.whitelist.values import ValueKind
from shovey_trio.core.whitelist.whitelist import DEFAULT_WHITELIST, parse_whitelist, whitelist_warnings

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "whitelist.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```json\n(.*?)```", DOCUMENT, re.DOTALL)


def first_cells(heading: str) -> set[str]:
    section = DOCUMENT.partition(f"\n{heading}")[2].partition("\n## ")[0]
    return set(re.findall(r"^\| `([a-z_]+)` \|", section, re.MULTILINE))


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_is_a_whitelist(example: str) -> None:
    assert parse_whitelist(example.encode()).entries


def test_larger_example_is_one_that_nothing_is_to_be_warned_of() -> None:
    assert len(EXAMPLES) == 2
    assert list(whitelist_warnings(parse_whitelist(EXAMPLES[1].encode()))) == []


def test_every_key_of_an_entry_is_described_and_no_other() -> None:
    assert first_cells("## Entries") == whitelist_entry._KEYS
    assert all(f"`{name}`" in DOCUMENT for name in whitelist_entry._LIMITS)


def test_every_type_and_key_of_a_rule_is_described() -> None:
    assert first_cells("## Arguments") >= set(ValueKind)
    assert all(f"`{key}`" in DOCUMENT for key in whitelist_values._KEYS - {"type"})


def test_installed_whitelist_is_the_default_and_holds_chef_client_alone() -> None:
    installed = parse_whitelist((ROOT / "shovey_trio" / "system" / "whitelist.json").read_bytes())
    assert installed == DEFAULT_WHITELIST
    assert list(installed.entries) == ["chef-client"]
