"""A short run of the proof in bench/whitelist_arguments.py, which judges a million values."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


def test_generated_values_are_accepted_exactly_when_the_rule_holds(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[2] / "bench" / "whitelist_arguments.py"
    spec = importlib.util.spec_from_file_location("whitelist_arguments", path)
    assert spec is not None
    assert spec.loader is not None
    proof = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(proof)
    assert proof.main(13_000, seed=3) == 0, capsys.readouterr().out
