"""The policy of tests/README.md that pytest itself can hold: what may be skipped, and where.

A test marked ``serf`` or ``goiardi`` is skipped, with the reason, where that program is not installed. In CI
(``CI=true``) nothing is skipped: a skipped test, fixture or module is a failed one there, whoever skipped it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Final

import pytest

IN_CI: Final = os.environ.get("CI", "").lower() in {"1", "true", "yes"}
# pytest has the laboratory on its own path (pyproject.toml); child processes of tests find it too.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH", ""))))
#: Marker and program; tools/test.sh installs them where it can.
PROGRAMS: Final = ("serf", "goiardi")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for program in PROGRAMS:
        if shutil.which(program) is None:
            absent = pytest.mark.skip(reason=f"the program {program} is not installed")
            for item in items:
                if item.get_closest_marker(program) is not None:
                    item.add_marker(absent)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        _fail(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if IN_CI and report.skipped:
        _fail(report)
    return report


def _fail(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turns a skip into a failure that tells the skip's reason."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"skipped, which is not allowed in CI: {reason.removeprefix('Skipped: ')}"
