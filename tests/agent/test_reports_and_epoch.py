"""What becomes of an exit report, and of the highest epoch."""

from __future__ import annotations

import pytest

from shovey_agent.desk.epoch import KEPT, JobEpochs
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


def test_an_epoch_only_rises_and_is_of_its_job_alone() -> None:
    epochs = JobEpochs([("one", 5)])
    epochs.raise_to("one", 7)
    epochs.raise_to("one", 3)
    assert (epochs.of("one"), epochs.of("other")) == (7, 0)


def test_of_more_jobs_than_are_kept_the_one_heard_of_longest_ago_is_forgotten() -> None:
    epochs = JobEpochs((f"job-{number}", 1) for number in range(KEPT))
    epochs.raise_to("job-0", 2)
    epochs.raise_to("new", 1)
    assert (epochs.of("job-0"), epochs.of("job-1"), epochs.of("new")) == (2, 0, 1)
