"""What the executor says of a run's end, in the words of the contract."""

from __future__ import annotations

from shovey_agent.run.runs import ExitCause, ExitReport
from shovey_trio.core.jobs.events import ReportOutcome, RunReport

_OUTCOMES = {
    ExitCause.EXITED: ReportOutcome.EXITED,
    ExitCause.SIGNALLED: ReportOutcome.EXITED,
    ExitCause.TIMED_OUT: ReportOutcome.TIMED_OUT,
    ExitCause.CANCELLED: ReportOutcome.CANCELLED,
    # The command never ran: it failed, with a reason, rather than that nobody knows.
    ExitCause.SPAWN_FAILED: ReportOutcome.EXITED,
    ExitCause.SUPERVISOR_LOST: ReportOutcome.CRASHED,
    ExitCause.NODE_REBOOTED: ReportOutcome.CRASHED,
}


def report_of(report: ExitReport) -> RunReport:
    """The report for the controller; ``output_bytes`` counts what the spool kept."""
    return RunReport(
        run_id=report.run_id,
        outcome=_OUTCOMES[report.cause],
        exit_code=report.exit_code,
        signal=report.signal,
        cause=report.cause.value,
        detail=report.detail,
        proof=report.proof,
        started_at=report.started_at,
        finished_at=report.finished_at,
        output_bytes=report.output.position - report.dropped_bytes,
        dropped_bytes=report.dropped_bytes,
    )
