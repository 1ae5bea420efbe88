"""A wing can be taken away: nobody but composition would notice."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

_CHECK = runpy.run_path(str(Path(__file__).parents[1] / "tools" / "check_wings.py"))


@pytest.fixture(scope="module")
def wing() -> Any:
    return _CHECK["Wing"]


def test_without_a_wing_only_composition_misses_something() -> None:
    assert list(_CHECK["broken_rules"]()) == []


def test_an_import_of_a_wing_is_found_wherever_it_is() -> None:
    broken = list(_CHECK["broken_rules"](composition=frozenset()))
    assert any(line.startswith("shovey_trio.controller.composition imports the wing shovey") for line in broken)
    assert any(line.startswith("shovey_agent.cli imports the wing shovey") for line in broken)


def test_wings_that_import_each_other_are_found(wing: Any) -> None:
    wings = {
        "rest": wing(packages=("shovey_trio.shovey.rest",), words="x" * 80),
        "protocol": wing(packages=("shovey_trio.shovey.protocol",), words="x" * 80),
        "gone": wing(packages=("shovey_trio.gone",), words="x" * 80),
    }
    broken = list(_CHECK["broken_rules"](wings))
    assert any(line.startswith("a wing imports another: shovey_trio.shovey.rest.") for line in broken)
    assert "there is no wing gone: shovey_trio.gone" in broken
