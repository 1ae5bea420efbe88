"""What becomes of an exit report, and of the highest epoch."""

from __future__ import annotations

from pathlib import Path

import pytest

from shovey_agent.desk.epoch import EpochFile
from shovey_agent.net.reports import report_of
from shovey_agent.run.runs import ExitCause, ExitReport
from shovey_trio.core.jobs.events import ReportOutcome
from shovey_trio.core.jobs.model import OutputExtent


@pytest.mark.parametrize("cause", list(ExitCause))
def test_every_cause_has_an_outcome_and_goes_out_by_its_own_name(cause: ExitCause) -> None:
    report = report_of(ExitReport(run_id="r", cause=cause, finished_at=1.0))
    assert report.cause == cause.value
    by_itself = {ExitCause.EXITED, ExitCause.SIGNALLED, ExitCause.SPAWN_FAILED}
    assert (report.outcome is ReportOutcome.EXITED) is (cause in by_itself)


def test_a_report_counts_the_bytes_that_were_kept() -> None:
    extent = OutputExtent(stdout_bytes=900, stderr_bytes=100)
    report = report_of(
        ExitReport(run_id="r", cause=ExitCause.EXITED, finished_at=1.0, output=extent, dropped_bytes=300)
    )
    assert (report.output_bytes, report.dropped_bytes) == (700, 300)


async def test_an_epoch_only_rises_and_outlives_the_agent(tmp_path: Path) -> None:
    file = EpochFile(tmp_path / "epoch")
    assert file.value == 0
    await file.raise_to(7)
    await file.raise_to(3)
    assert file.value == 7
    assert EpochFile(tmp_path / "epoch").value == 7


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff\xfe", b"7 8"])
def test_a_damaged_epoch_file_counts_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "epoch").write_bytes(content)
    assert EpochFile(tmp_path / "epoch").value == 0
