"""``/shovey/jobs``: starting, reading and cancelling jobs, and what old nodes report of their runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import structlog
import trio
from starlette.responses import Response

from shovey_trio.application.job_request import StartJob
from shovey_trio.application.jobs import CancelledJob, Jobs
from shovey_trio.core.errors import NotFound, Overloaded
from shovey_trio.core.jobs.model import StreamName
from shovey_trio.core.jobs.states import TERMINAL_RUN_STATES, JobState
from shovey_trio.core.jobs.targeting import Names
from shovey_trio.core.trust.authz import Action
from shovey_trio.http.asgi import hold
from shovey_trio.http.messages import error_response, json_response
from shovey_trio.shovey.protocol.requests import read_cancel_request, read_job_request, read_object
from shovey_trio.shovey.protocol.views import job_view, run_view, started_view
from shovey_trio.shovey.rest.lookups import find_job, find_run, reporting_node
from shovey_trio.shovey.rest.output_json import Stretch, with_output
from shovey_trio.shovey.rest.routing import Call, RestRoute
from shovey_trio.shovey.route.reports import SchobReports
from shovey_trio.store.contract import JobFilter, JobOverview

_log = structlog.get_logger(__name__)

# By then it is known of every node that is heard what became of the cancel: of a schob, ten seconds behind the grace.
_BEHIND_GRACE: Final = 15.0
# Jobs read from the store at a time while their ids are listed.
_PAGE: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPolicy:
    """What the shim's clients get when they do not say; seconds.

    Attributes:
        run_timeout: goiardi's default, which its clients count on.
        cancel_wait: longest that a cancel waits for the runs' ends before it answers; knife's own patience is 300 s.
    """

    run_timeout: float = 300.0
    cancel_wait: float = 240.0


class JobRoutes:
    """The handlers."""

    def __init__(self, jobs: Jobs, *, reports: SchobReports | None, policy: JobPolicy) -> None:
        self._jobs = jobs
        self._reports = reports
        self._policy = policy

    def routes(self) -> list[RestRoute]:
        """Their table."""
        jobs = "/shovey/jobs"
        run = "/shovey/jobs/{job}/{node}"
        return [
            RestRoute(
                method="GET",
                template=jobs,
                action=Action.USE_CHEF_API,
                handle=self.list_jobs,
                summary="Ids of all jobs",
            ),
            RestRoute(
                method="POST", template=jobs, action=Action.USE_CHEF_API, handle=self.start, summary="Start a job"
            ),
            RestRoute(
                method="PUT",
                template=f"{jobs}/cancel",
                action=Action.USE_CHEF_API,
                handle=self.cancel,
                summary="Cancel a job",
            ),
            RestRoute(
                method="GET", template=f"{jobs}/{{job}}", action=Action.USE_CHEF_API, handle=self.get, summary="A job"
            ),
            RestRoute(
                method="GET",
                template=run,
                action=Action.USE_CHEF_API,
                handle=self.get_run,
                summary="A node's part of a job",
            ),
            RestRoute(
                method="PUT",
                template=run,
                action=Action.REPORT_RUNS,
                handle=self.put_run,
                summary="A node's report of its run",
            ),
        ]

    async def list_jobs(self, call: Call) -> Response:
        found: list[str] = []
        where, after = JobFilter(organization=call.principal.organization), ""
        while True:
            page, after = await self._jobs.list_jobs(call.principal, where, limit=_PAGE, after=after)
            found += [job.id for job in page]
            if not after:
                break
        return json_response(sorted(found))

    async def start(self, call: Call) -> Response:
        """Starts a job once, however often knife repeats the request: what it has signed is the job's request id.

        Two equal requests of one user in one second have signed the same and are one job.
        """
        wanted = read_job_request(read_object(call.body))
        started = await self._jobs.start(
            call.principal,
            StartJob(
                command=wanted.command,
                selection=Names(names=wanted.nodes),
                quorum=wanted.quorum,
                run_timeout=self._policy.run_timeout if wanted.run_timeout is None else wanted.run_timeout,
                request_id=call.request_id,
                accept_unknown=True,
            ),
        )
        job = started.job
        if job.state is JobState.QUORUM_FAILED:
            text = f"Not enough nodes were up to execute job {job.id} - {job.detail}"
            return error_response(400, text)
        return json_response(started_view(job, call.url(f"/shovey/jobs/{job.id}")))

    async def get(self, call: Call) -> Response:
        return json_response(_view(await find_job(self._jobs, call, call.params["job"])))

    async def get_run(self, call: Call) -> Response:
        """A run with all of its output so far."""
        run, extent = await find_run(self._jobs, call)
        pieces = {
            "output": Stretch(stream=StreamName.STDOUT, end=extent.stdout_bytes),
            "stderr": Stretch(stream=StreamName.STDERR, end=extent.stderr_bytes),
        }
        return await with_output(self._jobs, run, run_view(run), pieces)

    async def put_run(self, call: Call) -> Response:
        job_id = call.params["job"]
        reports, node = reporting_node(self._reports, call)
        await reports.run_put(call.principal, job_id, node, read_object(call.body))
        return json_response({"id": job_id, "node": call.params["node"], "response": "ok"})

    async def cancel(self, call: Call) -> Response:
        """Cancels runs and waits for their ends, as knife shows nothing later; what has not ended is still running."""
        wanted = read_cancel_request(read_object(call.body))
        found = await find_job(self._jobs, call, wanted.job_id)
        if found.job.state is JobState.QUORUM_FAILED:
            raise NotFound(f"shovey job {wanted.job_id} has no runs: its quorum failed", job_id=wanted.job_id)
        cancelled = await self._jobs.cancel(call.principal, wanted.job_id, wanted.nodes, kill_grace=wanted.kill_timeout)
        if cancelled.cancelling:
            with trio.move_on_after(min(self._policy.cancel_wait, cancelled.job.kill_grace + _BEHIND_GRACE)):
                await hold(call.request, lambda: self._proven(call, cancelled, whole=not wanted.nodes))
        view = _view(await find_job(self._jobs, call, wanted.job_id))
        view["nodes"].setdefault("cancelled", [])
        return json_response(view)

    async def _proven(self, call: Call, cancelled: CancelledJob, *, whole: bool) -> None:
        async def look() -> bool | None:
            found = await find_job(self._jobs, call, cancelled.job.id)
            states = {run.node: run.state for run in found.runs}
            ended = all(states[node] in TERMINAL_RUN_STATES for node in cancelled.cancelling)
            return True if ended and (found.job.is_terminal or not whole) else None

        try:
            await self._jobs.until(cancelled.job.id, look)
        except Overloaded as error:
            # The cancel is under way; that nobody can wait for it now is no reason to fail it.
            _log.warning("cancel.not_awaited", job=cancelled.job.id, error=error.message)


def _view(found: JobOverview) -> dict[str, Any]:
    return job_view(found.job, found.runs)
