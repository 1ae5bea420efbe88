"""In CI a skipped test is a failed one; elsewhere it says why. Shown on a small suite under the real conftest."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

SUITE = """
import pytest

def test_runs():
    pass

def test_skips_itself():
    pytest.skip("no such device")

@pytest.fixture
def absent():
    pytest.skip("no such fixture")

def test_needs_it(absent):
    raise AssertionError

@pytest.mark.goiardi
def test_beside_goiardi():
    pass

@pytest.mark.xfail(reason="known", strict=True)
def test_known():
    raise AssertionError
"""
MODULE = 'import pytest\npytest.skip("not on this platform", allow_module_level=True)\n'


def run_suite(directory: Path, suites: Mapping[str, str], **environ: str) -> tuple[int, str]:
    """Runs suites under the real conftest; the exit code and what pytest printed."""
    shutil.copy(Path(__file__).with_name("conftest.py"), directory / "conftest.py")
    for name, text in suites.items():
        (directory / name).write_text(text)
    (directory / "pytest.ini").write_text("[pytest]\nmarkers =\n    serf: serf\n    goiardi: goiardi\n")
    clean = {key: value for key, value in os.environ.items() if key not in ("CI", "PYTEST_ADDOPTS")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rsfE", "-q"],
        # An empty PATH has no goiardi in it, wherever this runs.
        env={**clean, "PATH": "", "COLUMNS": "200", **environ},
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout


def test_outside_ci_a_skip_is_a_skip_and_tells_its_reason(tmp_path: Path) -> None:
    code, text = run_suite(tmp_path, {"test_some.py": SUITE, "test_module.py": MODULE})
    assert (code, text.splitlines()[-1].partition(" in ")[0]) == (0, "1 passed, 4 skipped, 1 xfailed")
    for reason in ("no such device", "no such fixture", "the program goiardi is not installed", "not on this platform"):
        assert reason in text


@pytest.mark.parametrize("value", ["true", "1"])
def test_in_ci_every_skipped_test_is_a_failure_and_tells_its_reason(tmp_path: Path, value: str) -> None:
    code, text = run_suite(tmp_path, {"test_some.py": SUITE}, CI=value)
    assert (code, text.splitlines()[-1].partition(" in ")[0]) == (1, "1 failed, 1 passed, 1 xfailed, 2 errors")
    for reason in ("no such device", "no such fixture", "the program goiardi is not installed"):
        assert f"skipped, which is not allowed in CI: {reason}" in text


def test_in_ci_a_skipped_module_is_a_failure(tmp_path: Path) -> None:
    code, text = run_suite(tmp_path, {"test_module.py": MODULE}, CI="true")
    assert code == 2
    assert "ERROR test_module.py - skipped, which is not allowed in CI: not on this platform" in text
