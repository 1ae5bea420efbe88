"""A short run of every fuzz target: that they work, that seeds are accepted, and that nothing is found at first sight.

The long runs are ``tools/fuzz.sh``'s. This one is the same every time: a fixed number of inputs from a fixed seed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

pytest.importorskip("atheris", reason="atheris is not installed; it is there for Linux on x86-64 alone")

_ROOT: Final = Path(__file__).parents[2]
# Of a target whose inputs take long; the others have ten times as many.
_INPUTS: Final = 100
_TARGETS: Final = 40
# Nearly all of it is importing with coverage built in; a busy machine takes several times as long.
_LIMIT: Final = 110.0


def _fuzz(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fuzz", *arguments],
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": str(_ROOT / "tests"), "PYTHONHASHSEED": "0", "PYTHONWARNINGS": "default"},
        capture_output=True,
        text=True,
        timeout=_LIMIT,
        check=False,
    )


@pytest.mark.slow
def test_no_decoder_falls_over_at_what_a_peer_sends() -> None:
    done = _fuzz("--short", "--seed", "1")
    results = [line.split()[:4] for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert len(results) >= _TARGETS, done.stdout
    assert [result for result in results if result[1] != "ok" or int(result[2]) < _INPUTS] == []
