"""``bench/compare.py``: worse is said only where a figure got worse, whichever way it counts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "bench" / "compare.py"


def _result(file: Path, **medians: float) -> Path:
    figures: list[dict[str, Any]] = [
        {
            "name": name,
            "unit": "1/s" if name == "rate" else "s",
            "median": value,
            "bar": {"at": 1, "at_least": True} if name == "rate" else None,
        }
        for name, value in medians.items()
    ]
    file.write_text(json.dumps({"scenarios": {"submit": {"figures": figures}}}))
    return file


def _compare(before: list[Path], after: list[Path]) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--before", *before, "--after", *after], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("after", "code", "ratio"),
    [
        ([{"wall": 1.0, "rate": 100}, {"wall": 1.1, "rate": 104}], 0, "1.00"),
        ([{"wall": 2.0, "rate": 100}, {"wall": 2.2, "rate": 104}], 1, "2.00"),
        ([{"wall": 1.0, "rate": 50}, {"wall": 1.1, "rate": 52}], 1, "2.00"),
        # Twice as slow by the median, but one result is as good as those before: that may be the machine.
        ([{"wall": 1.05, "rate": 100}, {"wall": 3.15, "rate": 104}], 0, "2.00"),
        ([{"wall": 0.5, "rate": 200}, {"wall": 0.55, "rate": 208}], 0, "0.50"),
    ],
)
def test_worse_is_what_is_apart_from_before_in_the_direction_that_counts(
    tmp_path: Path, after: list[dict[str, float]], code: int, ratio: str
) -> None:
    before = [
        _result(tmp_path / f"before-{index}", wall=wall, rate=rate)
        for index, (wall, rate) in enumerate([(1.0, 100), (1.1, 104)])
    ]
    later = [_result(tmp_path / f"after-{index}", **medians) for index, medians in enumerate(after)]
    returned, told = _compare(before, later)
    assert returned == code
    assert ratio in told
    assert ("slower" in told) == (code == 1)


def test_nothing_in_common_is_an_error(tmp_path: Path) -> None:
    assert _compare([_result(tmp_path / "a", wall=1.0)], [_result(tmp_path / "b", rate=1.0)])[0] == 2
