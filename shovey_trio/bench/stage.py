"""What every scenario plays on: a real daemon process, a client of its admin, and simulated agents."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from shovey_trio.bench.daemon_meter import STALLS_SEEN, DaemonMeter
from shovey_trio.bench.simulated_run import Behaviour, Kind
from shovey_trio.bench.swarm import Attached, Swarm, open_swarm
from shovey_trio.demo.fleet import Fleet
from shovey_trio.demo.processes import ManagedProcess, ProcessFailed
from shovey_trio.observe.loop_watch import STALL_VARIABLE
from shovey_trio.rpc.client.client import ShoveyClient
from shovey_trio.v1 import job_pb2, job_service_pb2

_POLL: Final = 0.01
_START_DEADLINE: Final = 60.0
# Above what a fleet gives its processes to end.
END_DEADLINE: Final = 60.0
_FINISHED: Final = frozenset(
    {
        job_pb2.JOB_STATE_COMPLETE,
        job_pb2.JOB_STATE_QUORUM_FAILED,
        job_pb2.JOB_STATE_CANCELLED,
        job_pb2.JOB_STATE_TIMED_OUT,
        job_pb2.JOB_STATE_CRASHED,
    }
)
_COMMANDS: Final = {"true": Behaviour(kind=Kind.EXIT), "wait": Behaviour(kind=Kind.WAIT)}


class WrongResult(Exception):
    """The daemon did not do what was measured; a figure would say nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """How large everything is.

    Attributes:
        agents: simulated agents, where the scenario does not say.
        processes: that they are spread over.
        rounds: how often what is quick is repeated.
        seconds: how long what goes on is watched.
        history_runs: runs that are stored before ``history``.
        output_mib: output of all agents together in ``output``.
        peer: another server that some scenarios measure beside this one; empty for none.
    """

    agents: int = 1000
    processes: int = 1
    rounds: int = 5
    seconds: float = 10.0
    history_runs: int = 1_000_000
    output_mib: int = 200
    peer: str = ""


class Stage:
    """A daemon with its client and its swarm; made by ``open_stage``."""

    def __init__(self, options: BenchOptions, fleet: Fleet, client: ShoveyClient, swarm: Swarm) -> None:
        self.options = options
        self.fleet = fleet
        self.client = client
        self.swarm = swarm
        assert fleet.controller.pid is not None
        self.daemon = DaemonMeter(fleet.controller.pid, fleet.controller.log)
        self.empty_memory = self.daemon.resident()

    async def attach(self, agents: int) -> Attached:
        """Has at least ``agents`` enrolled and attached, and tells how attaching went."""
        await self.swarm.enroll(self.client, agents)
        attached = await self.swarm.attach(agents)
        await self.wait_up(agents)
        return attached

    async def detach(self) -> None:
        """Has all agents leave; returns when the daemon has noticed."""
        await self.swarm.detach()
        while True:
            if not (await self.client.get_server_info()).nodes_attached:
                return
            await trio.sleep(_POLL)

    async def wait_up(self, agents: int) -> None:
        """Returns when the daemon counts as many as attached."""
        while True:
            if (await self.client.get_server_info()).nodes_attached >= agents:
                return
            self.fleet.controller.check()
            await trio.sleep(_POLL)

    async def start(self, command: str, nodes: Sequence[str], *, request_id: str = "") -> job_pb2.Job:
        """Starts a job."""
        target = job_service_pb2.Target(nodes=job_service_pb2.NodeNames(names=nodes))
        request = job_service_pb2.StartJobRequest(command=command, target=target, request_id=request_id)
        return (await self.client.start_job(request)).job

    async def finished(self, job_id: str) -> job_pb2.Job:
        """Waits for a job's end, by asking now and then: a watcher would be part of what is measured."""
        while True:
            job = await self.client.get_job(job_id)
            if job.state in _FINISHED:
                return job
            await trio.sleep(_POLL)

    async def watched(self, job_id: str) -> job_pb2.Job:
        """Waits for a job's end as an operator does, by watching every change of every run."""
        job = job_pb2.Job()
        async with self.client.watch_job(job_id) as events:
            async for event in events:
                match event.WhichOneof("event"):
                    case "snapshot":
                        job = event.snapshot.job
                    case "job_changed":
                        job = event.job_changed.job
                if job.state in _FINISHED:
                    return job
        raise WrongResult(f"the watch of {job_id} ended before the job")

    async def run_job(self, command: str, nodes: Sequence[str], *, watch: bool = False) -> float:
        """Runs a job to its end and returns the seconds that took.

        Raises:
            WrongResult: not every run has succeeded.
        """
        began = time.perf_counter()
        started = await self.start(command, nodes)
        job = await (self.watched if watch else self.finished)(started.id)
        took = time.perf_counter() - began
        expect(job, job_pb2.RUN_STATE_SUCCEEDED, len(nodes))
        return took


def expect(job: job_pb2.Job, state: job_pb2.RunState.ValueType, runs: int) -> None:
    """Raises ``WrongResult`` unless so many runs of the job, which are all, are in ``state``."""
    counts = {job_pb2.RunState.Name(each.state): each.count for each in job.run_counts}
    if counts != {job_pb2.RunState.Name(state): runs}:
        raise WrongResult(f"job {job.id} of {runs} runs ended {job_pb2.JobState.Name(job.state)}: {counts}")


@asynccontextmanager
async def open_stage(directory: Path, options: BenchOptions) -> AsyncIterator[Stage]:
    """A fresh daemon with everything on (TLS, fsync, logging as by default) and no agent yet.

    Args:
        directory: for everything; the caller removes it.
        options: sizes.

    Raises:
        ProcessFailed: the daemon did not start, or has died; the message shows its log.
    """
    fleet = make_fleet(directory)
    try:
        await fleet.initialize()
        await start_daemon(fleet)
        async with fleet.open_client() as client, open_swarm(directory, options.processes) as swarm:
            await swarm.behave(_COMMANDS)
            yield Stage(options, fleet, client, swarm)
    except Exception:
        # A daemon that has died is the cause of whatever else went wrong.
        fleet.controller.check()
        raise
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + END_DEADLINE):
            await fleet.end()


def make_fleet(directory: Path, **settings: str) -> Fleet:
    """A fleet of no agents whose daemon logs as JSON and tells its stalls; not started."""
    fleet = Fleet(
        directory,
        settings={"log.format": "json", "limits.enroll_per_minute": "1000000", **settings},
        serf=None,
    )
    plain = fleet.controller
    fleet.controller = ManagedProcess(plain.command, log=plain.log, environ={STALL_VARIABLE: str(STALLS_SEEN)})
    return fleet


async def start_daemon(fleet: Fleet) -> float:
    """Starts the daemon and returns after how many seconds its listeners were open.

    Raises:
        ProcessFailed: it has ended instead, or was not ready within a minute.
    """
    log = fleet.controller.log
    offset = log.stat().st_size if log.exists() else 0
    began = time.perf_counter()
    await fleet.controller.start()
    with trio.move_on_after(_START_DEADLINE):
        while b'"controller.ready"' not in log.read_bytes()[offset:]:
            fleet.controller.check()
            await trio.sleep(_POLL)
        return time.perf_counter() - began
    raise ProcessFailed(f"the daemon does not get ready:\n{fleet.controller.tail()}")
