"""What an operator does, in the shorthand of a test: start, wait, look."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from google.protobuf.duration_pb2 import Duration

from shovey_trio.core.jobs.states import TERMINAL_RUN_STATES
from shovey_trio.demo.fleet import Fleet
from shovey_trio.rpc.client.client import ShoveyClient
from shovey_trio.rpc.convert import RUN_STATES
from shovey_trio.v1 import job_pb2, job_service_pb2

STDOUT = job_pb2.OUTPUT_STREAM_STDOUT
STDERR = job_pb2.OUTPUT_STREAM_STDERR


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A job that has ended, with its runs by node."""

    job: job_pb2.Job
    runs: Mapping[str, job_pb2.Run]

    def states(self) -> dict[str, str]:
        """Node → the last word of its run's state, such as ``succeeded``."""
        return {node: state_of(run) for node, run in self.runs.items()}


class Operator:
    """An admin at work; made by ``open_operator``. No method has a deadline of its own."""

    def __init__(self, client: ShoveyClient) -> None:
        self.client = client

    async def start(self, command: str, *nodes: str, timeout: float | None = None, grace: float = 1.0) -> str:
        """Starts a job on these nodes (none: all) and returns its id; ``timeout`` and ``grace`` in seconds."""
        return (await self.client.start_job(request(command, *nodes, timeout=timeout, grace=grace))).job.id

    async def run(self, command: str, *nodes: str, timeout: float | None = None, grace: float = 1.0) -> Finished:
        """Starts a job and waits for its end."""
        return await self.finished(await self.start(command, *nodes, timeout=timeout, grace=grace))

    async def finished(self, job_id: str) -> Finished:
        """Waits for the end of a job."""
        async with self.client.watch_job(job_id) as watch:
            async for _ in watch:
                pass
        runs = {run.node: run async for run in self.client.list_runs(job_id)}
        return Finished(job=await self.client.get_job(job_id), runs=runs)

    async def until(self, job_id: str, node: str, holds: Callable[[job_pb2.Run], bool]) -> job_pb2.Run:
        """Waits until something holds of a run and returns it as it was then.

        Raises:
            AssertionError: the job ended first.
        """
        async with self.client.watch_job(job_id) as watch:
            async for event in watch:
                seen = [*event.snapshot.runs, event.run_changed.run]
                for run in seen:
                    if run.node == node and holds(run):
                        return run
        raise AssertionError(f"job {job_id} ended and it never held on {node}")

    async def reached(self, job_id: str, node: str, *states: str) -> job_pb2.Run:
        """Waits until a run is in one of these states."""
        return await self.until(job_id, node, lambda run: state_of(run) in states)

    async def output(
        self, job_id: str, node: str, stream: job_pb2.OutputStream.ValueType = STDOUT, *, offset: int = 0
    ) -> bytes:
        """What is durable of a run's output from ``offset`` on."""
        async with self.client.read_output(job_id, node, stream=stream, offset=offset) as chunks:
            return b"".join([answer.chunk.data async for answer in chunks])

    async def lines(self, job_id: str, node: str, count: int) -> list[str]:
        """Follows a run's standard output until it has so many whole lines, and returns them.

        Raises:
            AssertionError: the run ended with fewer.
        """
        text = b""
        async with self.client.read_output(job_id, node, stream=STDOUT, follow=True) as chunks:
            async for answer in chunks:
                text += answer.chunk.data
                if text.count(b"\n") >= count:
                    return text.decode().splitlines()[:count]
        raise AssertionError(f"the run on {node} ended after {text!r}")


@asynccontextmanager
async def open_operator(fleet: Fleet) -> AsyncIterator[Operator]:
    """The fleet's first admin at work, for the block."""
    async with fleet.open_client() as client:
        yield Operator(client)


def request(
    command: str,
    *nodes: str,
    timeout: float | None = None,
    grace: float | None = None,
    match: str = "",
    tags: Mapping[str, str] | None = None,
    quorum: str = "",
    request_id: str = "",
    dry_run: bool = False,
) -> job_service_pb2.StartJobRequest:
    """A request to start a job: on ``nodes``, on what ``match`` or ``tags`` select, or else on all."""
    asked = job_service_pb2.StartJobRequest(command=command, quorum=quorum, request_id=request_id, dry_run=dry_run)
    if nodes:
        asked.target.nodes.names.extend(nodes)
    elif match:
        asked.target.match = match
    elif tags:
        asked.target.tags.tags.update(tags)
    else:
        asked.target.all = True
    for field, seconds in ((asked.run_timeout, timeout), (asked.kill_grace, grace)):
        if seconds is not None:
            field.CopyFrom(_duration(seconds))
    return asked


def state_of(run: job_pb2.Run) -> str:
    """The state of a run in one lower-case word."""
    return job_pb2.RunState.Name(run.state).removeprefix("RUN_STATE_").lower()


def is_terminal(run: job_pb2.Run) -> bool:
    """Whether a run has ended."""
    return RUN_STATES.member(run.state) in TERMINAL_RUN_STATES


def job_state_of(job: job_pb2.Job) -> str:
    """The state of a job in one lower-case word."""
    return job_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_").lower()


def names_of(runs: Sequence[job_pb2.Run]) -> list[str]:
    """The nodes of runs, in their order."""
    return [run.node for run in runs]


def _duration(seconds: float) -> Duration:
    whole = int(seconds)
    return Duration(seconds=whole, nanos=round((seconds - whole) * 1e9))
