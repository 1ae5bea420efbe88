"""Jobs and runs as requests name them, with the texts that Shovey's clients know for what is not there."""

from __future__ import annotations

from shovey_trio.application.jobs import Jobs
from shovey_trio.core.errors import NotFound, PermissionDenied
from shovey_trio.core.jobs.model import OutputExtent, Run
from shovey_trio.core.jobs.states import JobState
from shovey_trio.shovey.rest.routing import Call
from shovey_trio.shovey.route.names import node_name
from shovey_trio.shovey.route.reports import SchobReports
from shovey_trio.store.contract import JobOverview


async def find_job(jobs: Jobs, call: Call, job_id: str) -> JobOverview:
    """A job with how far each of its runs is.

    Raises:
        NotFound: the caller's organization has none of this id.
    """
    try:
        return await jobs.overview(call.principal, job_id)
    except NotFound:
        raise _no_job(job_id) from None


async def find_run(jobs: Jobs, call: Call) -> tuple[Run, OutputExtent]:
    """The run that the path names, with the extent of its output.

    Raises:
        NotFound: there is none; a job that failed its quorum has no runs, as far as these clients are concerned.
    """
    job_id, node = call.params["job"], call.params["node"]
    try:
        job, _ = await jobs.get(call.principal, job_id)
    except NotFound:
        raise _no_job(job_id) from None
    missing = NotFound(f"run {job_id} for node {node} not found", job_id=job_id, node=node)
    if job.state is JobState.QUORUM_FAILED:
        raise missing
    try:
        return await jobs.get_run(call.principal, job_id, node)
    except NotFound:
        raise missing from None


def reporting_node(reports: SchobReports | None, call: Call) -> tuple[SchobReports, str]:
    """Who takes a node's report, and the node's name, once it is clear that the node reports for itself.

    Raises:
        PermissionDenied: it does not.
        NotFound: nodes do not report over HTTP here.
    """
    node = node_name(call.params["node"], call.principal.organization)
    if call.principal.name != node:
        raise PermissionDenied(f"{call.principal.label} may not report for {node}", principal=call.principal.label)
    if reports is None:
        raise NotFound("this controller takes no reports over HTTP")
    return reports, node


def _no_job(job_id: str) -> NotFound:
    return NotFound(f"shovey job {job_id} not found", job_id=job_id)
