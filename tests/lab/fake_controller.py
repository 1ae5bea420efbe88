"""A control plane in memory for tests of clients: real RPCs, real streams, nodes that are scripts.

What a client can tell apart is as in the real one: idempotent starts, durable before visible, a snapshot and then every
event with a resume token, output by position, a cancel that is proven later. What a test wants to happen to the client
is set as attributes: lost answers, streams cut in the middle.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import trio
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from shovey_trio.core.errors import Code, NotFound, PermissionDenied, RequestIdReused
from shovey_trio.core.ids import job_id as make_job_id
from shovey_trio.core.ids import run_id as make_run_id
from shovey_trio.core.jobs.model import Node as NodeValue
from shovey_trio.core.jobs.quorum import required_nodes
from shovey_trio.core.jobs.targeting import resolve
from shovey_trio.rpc import methods
from shovey_trio.rpc.bridge import AbortRpc, RpcStatus, Served, ServerCall, serve_server_stream, serve_unary
from shovey_trio.rpc.convert import selection_value, timestamp
from shovey_trio.v1 import admin_service_pb2 as admin_pb
from shovey_trio.v1 import job_pb2 as job_pb
from shovey_trio.v1 import job_service_pb2 as jobs_pb
from shovey_trio.v1 import node_pb2 as node_pb
from shovey_trio.v1 import node_service_pb2 as nodes_pb

CALLER: Final = "user/tester"
_TERMINAL: Final = frozenset(
    {
        job_pb.RUN_STATE_SUCCEEDED,
        job_pb.RUN_STATE_FAILED,
        job_pb.RUN_STATE_CANCELLED,
        job_pb.RUN_STATE_CANCEL_UNPROVEN,
        job_pb.RUN_STATE_UNAVAILABLE,
    }
)

Script = Callable[["FakeRun"], Awaitable[int]]
"""What a command does on a node: calls ``write`` and returns its exit code."""


@dataclass(eq=False)
class FakeRun:
    """One node's part of a job, as a script sees it."""

    job: FakeJob
    message: job_pb.Run
    chunks: list[job_pb.OutputChunk] = field(default_factory=list)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    @property
    def node(self) -> str:
        return self.message.node

    def watched(self) -> job_pb.Run:
        """The run as it is in a watch: without how much output there is."""
        run = job_pb.Run()
        run.CopyFrom(self.message)
        run.stdout_bytes = run.stderr_bytes = 0
        return run

    def write(self, data: bytes, *, stderr: bool = False, dropped_before: int = 0) -> None:
        """Append a chunk of output, durable at once; before it so many bytes were left out."""
        written = self.message.stderr_bytes if stderr else self.message.stdout_bytes
        chunk = job_pb.OutputChunk(
            stream=job_pb.OUTPUT_STREAM_STDERR if stderr else job_pb.OUTPUT_STREAM_STDOUT,
            position=self.message.stdout_bytes + self.message.stderr_bytes,
            stream_offset=written,
            read_at=_now(),
            data=data,
            dropped_before=dropped_before,
        )
        self.message.dropped_bytes += dropped_before
        if stderr:
            self.message.stderr_bytes += len(data)
        else:
            self.message.stdout_bytes += len(data)
        self.chunks.append(chunk)
        self.job.record(jobs_pb.WatchJobResponse(output=jobs_pb.RunOutput(node=self.node, chunk=chunk)))

    def become(self, state: job_pb.RunState.ValueType, **fields: Any) -> None:
        """Change the run, durable at once."""
        self.message.state = state
        self.message.updated_at.CopyFrom(_now())
        for name, value in fields.items():
            if isinstance(value, Message):
                getattr(self.message, name).CopyFrom(value)
            else:
                setattr(self.message, name, value)
        self.job.record(jobs_pb.WatchJobResponse(run_changed=jobs_pb.RunChanged(run=self.watched())))


@dataclass(eq=False)
class FakeJob:
    """A job, its runs, and every event that is behind it."""

    message: job_pb.Job
    request: jobs_pb.StartJobRequest
    runs: dict[str, FakeRun] = field(default_factory=dict)
    events: list[jobs_pb.WatchJobResponse] = field(default_factory=list)
    changed: trio.Event = field(default_factory=trio.Event)

    @property
    def ended(self) -> bool:
        return self.message.HasField("finished_at")

    def record(self, event: jobs_pb.WatchJobResponse) -> None:
        """Append a copy of an event and wake who waits for one."""
        kept = jobs_pb.WatchJobResponse()
        kept.CopyFrom(event)
        kept.resume_token = str(len(self.events) + 1)
        self.events.append(kept)
        self.changed.set()
        self.changed = trio.Event()

    def end(self, state: job_pb.JobState.ValueType, *, cause: str = "", detail: str = "") -> None:
        """Make the job terminal."""
        self.message.state = state
        self.message.cause = cause
        self.message.detail = detail
        self.message.finished_at.CopyFrom(_now())
        self.record(jobs_pb.WatchJobResponse(job_changed=jobs_pb.JobChanged(job=self.message)))

    def snapshot(self) -> jobs_pb.WatchJobResponse:
        """The job as it is, resumable behind its last event."""
        return jobs_pb.WatchJobResponse(
            resume_token=str(len(self.events)),
            snapshot=jobs_pb.JobSnapshot(
                job=self.message, runs=[run.watched() for run in self.runs.values()], complete=True
            ),
        )


class FakeController:
    """The state behind the serves; ``serve`` runs its jobs.

    Attributes:
        up: the registered nodes and whether each is up.
        scripts: what each command does.
        jobs: in the order they were started.
        lost_answers: so many answers to StartJob get lost after the job was started.
        stalled_answers: so many calls to GetServerInfo are never answered.
        open_streams: watches that are served now.
        cut_streams_after: watches and readers are cut with UNAVAILABLE after so many messages, while ``cuts`` last.
        cuts: how often that still happens.
        read_only: StartJob and CancelJob are denied.
        start_asked: set when the first StartJob has come.
        hold_start: StartJob is answered when this event is set.
        watched: set when the first watch has had its snapshot.
        hold_proof: a cancelled run stays ``cancelling`` until this event is set.
        proven: whether a cancelled run ends with a proof.
    """

    def __init__(self, up: Mapping[str, bool], scripts: Mapping[str, Script]) -> None:
        self.up = dict(up)
        self.scripts = dict(scripts)
        self.jobs: dict[str, FakeJob] = {}
        self.lost_answers = 0
        self.stalled_answers = 0
        self.open_streams = 0
        self.cut_streams_after: float = math.inf
        self.cuts = 0
        self.read_only = False
        self.proven = True
        self.watched = trio.Event()
        self.start_asked = trio.Event()
        self.hold_start = trio.Event()
        self.hold_start.set()
        self.hold_proof = trio.Event()
        self.hold_proof.set()
        self._nursery: trio.Nursery | None = None

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run jobs until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    def serves(self) -> Sequence[Served]:
        """The RPCs of ``shovey``."""
        return (
            serve_unary(methods.START_JOB, self._start_job),
            serve_unary(methods.GET_JOB, self._get_job),
            serve_unary(methods.LIST_JOBS, self._list_jobs),
            serve_unary(methods.CANCEL_JOB, self._cancel_job),
            serve_server_stream(methods.WATCH_JOB, self._watch_job),
            serve_unary(methods.GET_RUN, self._get_run),
            serve_unary(methods.LIST_RUNS, self._list_runs),
            serve_server_stream(methods.READ_OUTPUT, self._read_output),
            serve_unary(methods.LIST_NODES, self._list_nodes),
            serve_unary(methods.GET_NODE, self._get_node),
            serve_unary(methods.LIST_NODE_STATUSES, self._list_node_statuses),
            serve_unary(methods.GET_SERVER_INFO, self._get_server_info),
        )

    def add_finished_job(self, command: str, nodes: Sequence[str]) -> FakeJob:
        """A job of the past, all of whose runs succeeded."""
        request = jobs_pb.StartJobRequest(command=command)
        job = self._add_job(request, nodes)
        for run in job.runs.values():
            run.become(job_pb.RUN_STATE_SUCCEEDED, exit_code=0, cause="exited", finished_at=_now())
        job.end(job_pb.JOB_STATE_COMPLETE)
        return job

    def node_message(self, name: str) -> node_pb.Node:
        """A registered node, as clients see it."""
        up = self.up[name]
        return node_pb.Node(
            name=name,
            organization="org",
            status=node_pb.NodeStatus(
                presence=node_pb.NODE_PRESENCE_UP if up else node_pb.NODE_PRESENCE_DOWN,
                since=timestamp(time.time() - 90),
                reason="attached" if up else "stream_lost",
            ),
            tags={"role": name.partition("-")[0]},
            link=node_pb.LINK_MODE_ON_DEMAND,
            agent_version="1.2.3",
            enrolled_at=timestamp(1_700_000_000.0),
            last_seen_at=timestamp(time.time() - 5),
            attached=up,
            serf_status="alive",
        )

    # -- jobs

    async def _start_job(self, request: jobs_pb.StartJobRequest, _: ServerCall[Any, Any]) -> jobs_pb.StartJobResponse:
        self._check_writable()
        self.start_asked.set()
        await self.hold_start.wait()
        targets = self._resolve(request.target)
        needed = required_nodes(request.quorum or "100%", len(targets))
        if request.dry_run:
            return self._dry_run(request, targets)
        job = self._started_earlier(request)
        if job is None:
            job = self._start(request, targets, needed)
        if self.lost_answers:
            self.lost_answers -= 1
            raise AbortRpc(RpcStatus(code=Code.UNAVAILABLE, message="the answer was lost"))
        return jobs_pb.StartJobResponse(job=job.message)

    def _dry_run(self, request: jobs_pb.StartJobRequest, targets: Sequence[str]) -> jobs_pb.StartJobResponse:
        answer = jobs_pb.StartJobResponse(job=job_pb.Job(command=request.command, run_total=len(targets)))
        for node in targets:
            route = job_pb.ROUTE_STREAM if self.up[node] else job_pb.ROUTE_UNSPECIFIED
            answer.targets.add(node=node, up=self.up[node], route=route)
        return answer

    def _started_earlier(self, request: jobs_pb.StartJobRequest) -> FakeJob | None:
        for job in self.jobs.values():
            if request.request_id and job.request.request_id == request.request_id:
                if job.request != request:
                    raise RequestIdReused(f"request {request.request_id} started another job", job_id=job.message.id)
                return job
        return None

    def _start(self, request: jobs_pb.StartJobRequest, targets: Sequence[str], needed: int) -> FakeJob:
        if request.command not in self.scripts:
            raise NotFound(f"no script for {request.command}")
        job = self._add_job(request, targets)
        if sum(self.up[node] for node in targets) < needed:
            for run in job.runs.values():
                run.become(job_pb.RUN_STATE_UNAVAILABLE, cause="quorum_not_met")
            job.end(job_pb.JOB_STATE_QUORUM_FAILED, cause="quorum_not_met", detail=f"{needed} nodes must be up")
        else:
            assert self._nursery is not None  # calls are served after ``serve`` has started
            self._nursery.start_soon(self._run_job, job)
        return job

    def _add_job(self, request: jobs_pb.StartJobRequest, targets: Sequence[str]) -> FakeJob:
        now = time.time()
        message = job_pb.Job(
            id=make_job_id(now, len(self.jobs).to_bytes(10, "big")),
            organization="org",
            command=request.command,
            state=job_pb.JOB_STATE_RUNNING,
            quorum=request.quorum or "100%",
            run_timeout=request.run_timeout,
            created_by=CALLER,
            created_at=timestamp(now),
            updated_at=timestamp(now),
            run_total=len(targets),
        )
        job = self.jobs[message.id] = FakeJob(message=message, request=request)
        for node in targets:
            run = job_pb.Run(
                id=make_run_id(message.id, node),
                job_id=message.id,
                node=node,
                state=job_pb.RUN_STATE_PENDING,
                created_at=timestamp(now),
                updated_at=timestamp(now),
            )
            job.runs[node] = FakeRun(job=job, message=run)
        return job

    async def _run_job(self, job: FakeJob) -> None:
        async with trio.open_nursery() as nursery:
            for run in job.runs.values():
                nursery.start_soon(self._run_node, run)
        cancelled = all(run.message.state == job_pb.RUN_STATE_CANCELLED for run in job.runs.values())
        for state in sorted(_TERMINAL):
            if count := sum(run.message.state == state for run in job.runs.values()):
                job.message.run_counts.add(state=state, count=count)
        job.end(job_pb.JOB_STATE_CANCELLED if cancelled else job_pb.JOB_STATE_COMPLETE)

    async def _run_node(self, run: FakeRun) -> None:
        run.become(job_pb.RUN_STATE_RUNNING, started_at=_now(), route=job_pb.ROUTE_STREAM)
        with run.scope:
            code = await self.scripts[run.job.message.command](run)
            run.become(
                job_pb.RUN_STATE_FAILED if code else job_pb.RUN_STATE_SUCCEEDED,
                exit_code=code,
                cause="exited",
                finished_at=_now(),
            )
            return
        await self.hold_proof.wait()
        run.become(
            job_pb.RUN_STATE_CANCELLED if self.proven else job_pb.RUN_STATE_CANCEL_UNPROVEN,
            cancelling=False,
            cause="cancelled",
            proof=job_pb.PROOF_KIND_EMPTY_CGROUP if self.proven else job_pb.PROOF_KIND_UNSPECIFIED,
            finished_at=_now(),
        )

    async def _cancel_job(
        self, request: jobs_pb.CancelJobRequest, _: ServerCall[Any, Any]
    ) -> jobs_pb.CancelJobResponse:
        self._check_writable()
        job = self._job(request.job_id)
        answer = jobs_pb.CancelJobResponse()
        job.message.cancel_requested = not request.nodes
        for node in sorted(request.nodes or job.runs):
            run = job.runs.get(node)
            if run is None:
                raise NotFound(f"job {request.job_id} has no run on {node}")
            if run.message.state in _TERMINAL:
                answer.already_finished.append(node)
            else:
                answer.cancelling.append(node)
                run.become(run.message.state, cancelling=True)
                run.scope.cancel(reason="a client asked for it")
        answer.job.CopyFrom(job.message)
        return answer

    async def _get_job(self, request: jobs_pb.GetJobRequest, _: ServerCall[Any, Any]) -> jobs_pb.GetJobResponse:
        return jobs_pb.GetJobResponse(job=self._job(request.job_id).message)

    async def _list_jobs(self, request: jobs_pb.ListJobsRequest, _: ServerCall[Any, Any]) -> jobs_pb.ListJobsResponse:
        found = [
            job.message
            for job in reversed(self.jobs.values())
            if (not request.states or job.message.state in request.states)
            and request.command in {"", job.message.command}
            and request.created_by in {"", job.message.created_by}
        ]
        page, token = _page(found, request.page_size, request.page_token)
        return jobs_pb.ListJobsResponse(jobs=page, next_page_token=token)

    async def _get_run(self, request: jobs_pb.GetRunRequest, _: ServerCall[Any, Any]) -> jobs_pb.GetRunResponse:
        return jobs_pb.GetRunResponse(run=self._job(request.job_id).runs[request.node].message)

    async def _list_runs(self, request: jobs_pb.ListRunsRequest, _: ServerCall[Any, Any]) -> jobs_pb.ListRunsResponse:
        runs = [run.message for _, run in sorted(self._job(request.job_id).runs.items())]
        page, token = _page(runs, request.page_size, request.page_token)
        return jobs_pb.ListRunsResponse(runs=page, next_page_token=token)

    async def _watch_job(self, request: jobs_pb.WatchJobRequest, call: ServerCall[Any, Any]) -> None:
        self.open_streams += 1
        try:
            await self._feed_watch(request, call)
        finally:
            self.open_streams -= 1

    async def _feed_watch(self, request: jobs_pb.WatchJobRequest, call: ServerCall[Any, Any]) -> None:
        job = self._job(request.job_id)
        sent = 0
        if request.resume_token:
            seen = int(request.resume_token)
        else:
            seen = len(job.events)
            await call.send(job.snapshot())
            sent += 1
            self.watched.set()
        while True:
            changed, ended = job.changed, job.ended
            for event in job.events[seen:]:
                seen += 1
                if request.include_output or event.WhichOneof("event") != "output":
                    self._maybe_cut(sent)
                    await call.send(event)
                    sent += 1
            if ended:
                return
            if seen == len(job.events):
                await changed.wait()

    async def _read_output(self, request: jobs_pb.ReadOutputRequest, call: ServerCall[Any, Any]) -> None:
        job = self._job(request.job_id)
        run = job.runs.get(request.node)
        if run is None:
            raise NotFound(f"job {request.job_id} has no run on {request.node}")
        seen = sent = 0
        while True:
            changed, ended = job.changed, run.message.state in _TERMINAL
            for chunk in run.chunks[seen:]:
                seen += 1
                if (piece := _beyond(chunk, request)) is not None:
                    self._maybe_cut(sent)
                    await call.send(jobs_pb.ReadOutputResponse(chunk=piece))
                    sent += 1
            if ended or not request.follow:
                return
            if seen == len(run.chunks):
                await changed.wait()

    # -- nodes and the server

    async def _list_nodes(
        self, request: nodes_pb.ListNodesRequest, _: ServerCall[Any, Any]
    ) -> nodes_pb.ListNodesResponse:
        nodes = [
            node
            for node in map(self.node_message, sorted(self.up))
            if (not request.presences or node.status.presence in request.presences)
            and all(node.tags.get(key) == value for key, value in request.tags.items())
        ]
        page, token = _page(nodes, request.page_size, request.page_token)
        return nodes_pb.ListNodesResponse(nodes=page, next_page_token=token)

    async def _get_node(self, request: nodes_pb.GetNodeRequest, _: ServerCall[Any, Any]) -> nodes_pb.GetNodeResponse:
        if request.name not in self.up:
            raise NotFound(f"there is no node {request.name}")
        return nodes_pb.GetNodeResponse(node=self.node_message(request.name))

    async def _list_node_statuses(
        self, request: nodes_pb.ListNodeStatusesRequest, _: ServerCall[Any, Any]
    ) -> nodes_pb.ListNodeStatusesResponse:
        statuses = [
            self.node_message(request.name).status,
            node_pb.NodeStatus(presence=node_pb.NODE_PRESENCE_DOWN, since=timestamp(1.7e9), reason="serf_failed"),
        ]
        page, token = _page(statuses, request.page_size, request.page_token)
        return nodes_pb.ListNodeStatusesResponse(statuses=page, next_page_token=token)

    async def _get_server_info(
        self, _: admin_pb.GetServerInfoRequest, __: ServerCall[Any, Any]
    ) -> admin_pb.GetServerInfoResponse:
        if self.stalled_answers:
            self.stalled_answers -= 1
            await trio.sleep_forever()
        return admin_pb.GetServerInfoResponse(version="9.9.9", organization="org", caller=CALLER)

    # -- helpers

    def _job(self, job_id: str) -> FakeJob:
        job = self.jobs.get(job_id)
        if job is None:
            raise NotFound(f"there is no job {job_id}", job_id=job_id)
        return job

    def _resolve(self, target: jobs_pb.Target) -> Sequence[str]:
        nodes = {
            name: NodeValue(
                name=name,
                organization="org",
                tags=dict(self.node_message(name).tags),
                enrolled_at=0.0,
                presence_since=0.0,
            )
            for name in self.up
        }
        return resolve(selection_value(target), nodes)

    def _check_writable(self) -> None:
        if self.read_only:
            raise PermissionDenied(f"{CALLER} is a viewer and may not do this")

    def _maybe_cut(self, sent: int) -> None:
        if self.cuts and sent >= self.cut_streams_after:
            self.cuts -= 1
            raise AbortRpc(RpcStatus(code=Code.UNAVAILABLE, message="the server is going away"))


def _now() -> Timestamp:
    now = Timestamp()
    now.FromMicroseconds(int(time.time() * 1e6))
    return now


def _page(items: Sequence[Any], size: int, token: str) -> tuple[Sequence[Any], str]:
    start = int(token or 0)
    end = start + (size or 100)
    return items[start:end], str(end) if end < len(items) else ""


def _beyond(chunk: job_pb.OutputChunk, request: jobs_pb.ReadOutputRequest) -> job_pb.OutputChunk | None:
    """The part of ``chunk`` that the request is still for."""
    if request.stream not in {job_pb.OUTPUT_STREAM_UNSPECIFIED, chunk.stream}:
        return None
    start = chunk.stream_offset if request.stream else chunk.position
    skip = max(request.offset - start, 0)
    if skip >= len(chunk.data):
        return None
    return job_pb.OutputChunk(
        stream=chunk.stream,
        position=chunk.position + skip,
        stream_offset=chunk.stream_offset + skip,
        read_at=chunk.read_at,
        data=chunk.data[skip:],
        dropped_before=0 if skip else chunk.dropped_before,
    )
