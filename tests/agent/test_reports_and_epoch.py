"""What a run's exit record means to the controller, and the highest epoch."""

from __future__ import annotations

from pathlib import Path

import pytest

from shovey_agent.desk.epoch import KEPT, JobEpochs
from shovey_agent.run.runs import ExitCause
from shovey_agent.run.spool import Spool, SpoolLimits
from shovey_trio.core.jobs.events import ReportOutcome, RunReport
from shovey_trio.core.jobs.model import ProofKind


@pytest.mark.parametrize("cause", list(ExitCause))
def test_every_cause_has_an_outcome(cause: ExitCause) -> None:
    by_itself = {ExitCause.EXITED, ExitCause.SIGNALLED, ExitCause.SPAWN_FAILED}
    assert (cause.outcome is ReportOutcome.EXITED) is (cause in by_itself)


def test_an_exit_record_of_4a4340d_is_read_and_counts_the_bytes_that_were_kept(tmp_path: Path) -> None:
    spool = Spool(tmp_path, SpoolLimits())
    directory = Path(spool.directory("r"))
    directory.mkdir(parents=True)
    # Byte for byte what a supervisor of that version wrote.
    directory.joinpath("exit.json").write_text(
        '{"format": 1, "cause": "signalled", "detail": "", "exit_code": null, "signal": 9, "started_at": 1.5, '
        '"finished_at": 2.5, "proof": null, "stdout_bytes": 900, "stderr_bytes": 100, "dropped_stdout": 250, '
        '"dropped_stderr": 50}'
    )
    assert spool.exit_report("r") == RunReport(
        run_id="r",
        outcome=ReportOutcome.EXITED,
        cause="signalled",
        signal=9,
        started_at=1.5,
        finished_at=2.5,
        output_bytes=700,
        dropped_bytes=300,
    )


@pytest.mark.parametrize("proof", [None, ProofKind.EMPTY_CGROUP])
def test_an_end_that_the_agent_records_is_read_as_it_was_recorded(tmp_path: Path, proof: ProofKind | None) -> None:
    spool = Spool(tmp_path, SpoolLimits())
    Path(spool.directory("r")).mkdir(parents=True)
    report = RunReport(
        run_id="r",
        outcome=ReportOutcome.CRASHED,
        cause=ExitCause.SUPERVISOR_LOST,
        detail="the supervisor is gone",
        proof=proof,
        finished_at=2.5,
        output_bytes=700,
        dropped_bytes=300,
    )
    spool.write_exit(report)
    assert spool.exit_report("r") == report


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
