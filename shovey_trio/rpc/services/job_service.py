"""JobService: start, read, watch and cancel jobs."""

from __future__ import annotations

from collections.abc import Sequence

from shovey_trio.application.explain import Explain, ExplainRun
from shovey_trio.application.job_request import StartJob
from shovey_trio.application.jobs import Jobs
from shovey_trio.core.jobs.model import OutputChunk
from shovey_trio.core.trust.explain import overall
from shovey_trio.nursery.watch import WatchPosition
from shovey_trio.rpc import methods
from shovey_trio.rpc.bridge import Served, ServerCall, serve_server_stream, serve_unary
from shovey_trio.rpc.convert import (
    JOB_STATES,
    ROUTES,
    RUN_STATES,
    STREAMS,
    VERDICTS,
    asked_input,
    chunk_message,
    duration_seconds,
    input_value,
    job_message,
    run_message,
    selection_value,
)
from shovey_trio.rpc.services.callers import caller
from shovey_trio.rpc.services.paging import decode_resume, encode_resume, page_size
from shovey_trio.store.contract import JobFilter, JobSnapshot, StoredEvent, StoredJob, StoredRun
from shovey_trio.v1 import job_service_pb2 as pb

# Runs per part of a snapshot: about 250 KiB, far below the 4 MiB a message may have.
_SNAPSHOT_PART = 500


class JobService:
    """Handlers of JobService; ``serves`` ties them to their methods."""

    def __init__(self, jobs: Jobs, explain: Explain) -> None:
        self._jobs = jobs
        self._explain = explain

    def serves(self) -> Sequence[Served]:
        return (
            serve_unary(methods.START_JOB, self._start),
            serve_unary(methods.GET_JOB, self._get),
            serve_unary(methods.LIST_JOBS, self._list),
            serve_unary(methods.CANCEL_JOB, self._cancel),
            serve_server_stream(methods.WATCH_JOB, self._watch),
            serve_unary(methods.GET_RUN, self._get_run),
            serve_unary(methods.LIST_RUNS, self._list_runs),
            serve_server_stream(methods.READ_OUTPUT, self._read_output),
            serve_unary(methods.EXPLAIN_RUN, self._explain_run),
        )

    async def _start(self, request: pb.StartJobRequest, _: object) -> pb.StartJobResponse:
        timeout, grace = request.run_timeout, request.kill_grace
        started = await self._jobs.start(
            caller(),
            StartJob(
                command=request.command,
                selection=selection_value(request.target),
                quorum=request.quorum,
                run_timeout=(
                    duration_seconds(timeout, field="run_timeout") if request.HasField("run_timeout") else None
                ),
                kill_grace=duration_seconds(grace, field="kill_grace") if request.HasField("kill_grace") else None,
                request_id=request.request_id,
                dry_run=request.dry_run,
                vote=request.vote,
                input=input_value(request),
            ),
        )
        return pb.StartJobResponse(
            job=job_message(started.job, self._jobs.counts(started.job)),
            targets=[
                pb.ResolvedTarget(node=target.node, up=target.up, route=ROUTES.number(target.route))
                for target in started.targets
            ],
        )

    async def _get(self, request: pb.GetJobRequest, _: object) -> pb.GetJobResponse:
        job, counts = await self._jobs.get(caller(), request.job_id)
        return pb.GetJobResponse(job=job_message(job, counts))

    async def _list(self, request: pb.ListJobsRequest, _: object) -> pb.ListJobsResponse:
        principal = caller()
        where = JobFilter(
            organization=principal.organization,
            states=JOB_STATES.members(request.states),
            command=request.command,
            created_by=request.created_by,
        )
        jobs, token = await self._jobs.list_jobs(
            principal, where, limit=page_size(request.page_size), after=request.page_token
        )
        return pb.ListJobsResponse(
            jobs=[job_message(job, self._jobs.counts(job)) for job in jobs], next_page_token=token
        )

    async def _cancel(self, request: pb.CancelJobRequest, _: object) -> pb.CancelJobResponse:
        cancelled = await self._jobs.cancel(caller(), request.job_id, request.nodes)
        return pb.CancelJobResponse(
            job=job_message(cancelled.job, self._jobs.counts(cancelled.job)),
            cancelling=cancelled.cancelling,
            already_finished=cancelled.already_finished,
        )

    async def _watch(
        self, request: pb.WatchJobRequest, call: ServerCall[pb.WatchJobRequest, pb.WatchJobResponse]
    ) -> None:
        async def snapshot(picture: JobSnapshot, position: WatchPosition) -> None:
            token = encode_resume(request.job_id, position)
            runs = picture.runs
            job = job_message(picture.job, self._jobs.counts(picture.job))
            for start in range(0, max(len(runs), 1), _SNAPSHOT_PART):
                part = runs[start : start + _SNAPSHOT_PART]
                complete = start + _SNAPSHOT_PART >= len(runs)
                await call.send(
                    pb.WatchJobResponse(
                        # Resuming from the middle of a snapshot begins with a snapshot again.
                        resume_token=token if complete else "",
                        snapshot=pb.JobSnapshot(job=job, runs=[run_message(run) for run in part], complete=complete),
                    )
                )

        async def event(found: StoredEvent, position: WatchPosition) -> None:
            await call.send(self._event_message(encode_resume(request.job_id, position), found))

        await self._jobs.watch(
            caller(),
            request.job_id,
            position=decode_resume(request.resume_token, request.job_id),
            include_output=request.include_output,
            snapshot=snapshot,
            event=event,
        )

    def _event_message(self, token: str, event: StoredEvent) -> pb.WatchJobResponse:
        match event:
            case StoredJob(job=job):
                changed = pb.JobChanged(job=job_message(job, self._jobs.counts(job)))
                return pb.WatchJobResponse(resume_token=token, job_changed=changed)
            case StoredRun(run=run):
                return pb.WatchJobResponse(resume_token=token, run_changed=pb.RunChanged(run=run_message(run)))
            case _:
                output = pb.RunOutput(node=event.node, chunk=chunk_message(event.chunk))
                return pb.WatchJobResponse(resume_token=token, output=output)

    async def _get_run(self, request: pb.GetRunRequest, _: object) -> pb.GetRunResponse:
        run, extent = await self._jobs.get_run(caller(), request.job_id, request.node)
        return pb.GetRunResponse(run=run_message(run, extent))

    async def _list_runs(self, request: pb.ListRunsRequest, _: object) -> pb.ListRunsResponse:
        runs, extents, token = await self._jobs.list_runs(
            caller(),
            request.job_id,
            states=RUN_STATES.members(request.states),
            limit=page_size(request.page_size),
            after=request.page_token,
        )
        return pb.ListRunsResponse(runs=[run_message(run, extents.get(run.id)) for run in runs], next_page_token=token)

    async def _explain_run(self, request: pb.ExplainRunRequest, _: object) -> pb.ExplainRunResponse:
        question = ExplainRun(
            command=request.command,
            node=request.node,
            as_user=request.as_user,
            input=asked_input(request),
        )
        steps = await self._explain.explain(caller(), question)
        return pb.ExplainRunResponse(
            verdict=VERDICTS.number(overall(steps)),
            steps=[
                pb.ExplainStep(rule=step.rule.value, verdict=VERDICTS.number(step.verdict), detail=step.detail)
                for step in steps
            ],
        )

    async def _read_output(
        self, request: pb.ReadOutputRequest, call: ServerCall[pb.ReadOutputRequest, pb.ReadOutputResponse]
    ) -> None:
        async def send(chunk: OutputChunk) -> None:
            await call.send(pb.ReadOutputResponse(chunk=chunk_message(chunk)))

        await self._jobs.read_output(
            caller(),
            request.job_id,
            request.node,
            stream=STREAMS.member(request.stream),
            offset=request.offset,
            follow=request.follow,
            chunk=send,
        )
