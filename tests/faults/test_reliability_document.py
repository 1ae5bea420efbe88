"""docs/reliability.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

from shovey_trio.config.server import ServerSettings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "reliability.md").read_text("utf-8")


def test_every_test_that_holds_a_promise_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", TEXT)
    assert len(named) > 20
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text("utf-8") if test else (ROOT / file).exists(), (file, test)


def test_every_promise_has_a_test() -> None:
    rows = TEXT.partition("## Promises")[2].partition("##")[0].splitlines()
    promises = [row for row in rows if row.startswith("|") and not row.startswith(("| promise", "|---"))]
    assert promises
    assert [row for row in promises if "::test_" not in row] == []


def test_the_bounds_told_are_those_in_force() -> None:
    limits = ServerSettings().limits
    bounds = re.findall(r"\| `limits\.(\w+)` [\d,]+", TEXT)
    assert len(bounds) > 5
    for name in bounds:
        told = re.search(rf"`limits\.{name}` ([\d,]+)", TEXT)
        assert told is not None
        assert int(told[1].replace(",", "")) == getattr(limits, name)
