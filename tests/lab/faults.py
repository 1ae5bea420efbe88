"""A fleet to do harm to: real daemon, real agents, a relay between them, failpoints in all of them, and the history.

``FaultBench`` has the single harms; ``lab.chaos`` chooses among them at random, ``tests/faults`` one by
one. Whatever was done, ``settle`` puts everything back into working order, waits for every acknowledged job to end and
returns the rules that were broken.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2

from lab.clocks import CONTROLLER, Clocks
from lab.history import JobRecord, Rule, RunResult, Violation, judge_events, judge_job
from lab.relay import Relay, Weather, open_relay
from lab.workload import starts, survivors, whitelist
from shovey_trio.demo.fleet import Fleet, FleetNode, NodeSpec, open_fleet
from shovey_trio.observe import failpoints
from shovey_trio.rpc.bridge import Method, RpcError, open_channel
from shovey_trio.rpc.bridge.methods import service_methods
from shovey_trio.rpc.client.client import ShoveyClient, open_client
from shovey_trio.rpc.client.retry import RetryPolicy
from shovey_trio.rpc.services.paging import decode_resume
from shovey_trio.store.opening import open_store
from shovey_trio.v1 import job_pb2 as job_pb
from shovey_trio.v1 import job_service_pb2 as jobs_pb

_POLL = 0.05
# A user who does not give up: longer than any fault lasts.
_PATIENT = RetryPolicy(attempt_deadline=5.0, call_patience=120.0, stream_patience=120.0, longest_pause=0.5)
KILL_GRACE = 0.3

# Time compressed: what takes a minute in production takes a second here. The acceptance and the grace outlast every
# fault, so that nothing ends because a test was slow.
CONTROLLER_SETTINGS: Mapping[str, str] = {
    "presence.stream_lost_after": "0.5s",
    "jobs.acceptance": "60s",
    "jobs.reconnect_grace": "120s",
    "server.drain_timeout": "0.5s",
    # Beyond what tests of much output ask of agents.
    "limits.max_run_output": "5GiB",
}
AGENT_SETTINGS: Mapping[str, object] = {
    "reconnect.delay_min": 0.1,
    "reconnect.delay_max": 0.5,
    "reconnect.pull_every": 2.0,
    "reconnect.linger": 0.3,
    "runs.max_concurrent": 200,
}


class FaultBench:
    """A fleet with its relay and its history; made by ``open_bench``."""

    def __init__(
        self, fleet: Fleet, relay: Relay, clocks: Clocks, *, plan: Path, ledger: Path, nursery: trio.Nursery
    ) -> None:
        self.fleet = fleet
        self.relay = relay
        self.clocks = clocks
        self.ledger = ledger
        self.history: list[JobRecord] = []
        self._plan = plan
        self._nursery = nursery
        self._requests = 0
        self._watching = 0
        self._watched = trio.Event()

    @asynccontextmanager
    async def open_client(self) -> AsyncIterator[ShoveyClient]:
        """A client of the admin that outlasts faults. It does not go through the relay."""
        server, tls, server_name = self.fleet.client_tls()
        async with open_client(server, tls, server_name=server_name, retry=_PATIENT) as client:
            yield client

    # -- load

    async def start_job(
        self,
        client: ShoveyClient,
        command: str,
        nodes: Sequence[str] | None = None,
        *,
        watch: bool = True,
        excused: frozenset[str] = frozenset(),
    ) -> JobRecord:
        """Starts a job until that is acknowledged, and has it watched until its end."""
        targets = tuple(nodes or self.fleet.nodes)
        self._requests += 1
        record = JobRecord(request_id=f"bench-{self._requests}", command=command, nodes=targets, excused=excused)
        self.history.append(record)
        grace = Duration()
        grace.FromNanoseconds(int(KILL_GRACE * 1e9))
        request = jobs_pb.StartJobRequest(
            command=command,
            target=jobs_pb.Target(nodes=jobs_pb.NodeNames(names=targets)),
            quorum="0",
            kill_grace=grace,
            request_id=record.request_id,
        )
        started = await client.start_job(request)
        record.job_id = started.job.id
        if watch:
            self._watching += 1
            self._nursery.start_soon(self._watch, record)
        return record

    async def cancel_job(self, client: ShoveyClient, record: JobRecord) -> None:
        """Cancels a job until that is acknowledged."""
        record.cancel_asked = True
        await client.cancel_job(record.job_id)

    async def wait_started(self, count: int) -> None:
        """Waits until so many different runs have been started, over the whole history."""
        await until(lambda: len(starts(self.ledger)) >= count)

    async def wait_state(self, client: ShoveyClient, record: JobRecord, node: str, *states: int) -> job_pb.Run:
        """Waits until a run is in one of these states."""
        while True:
            run = await client.get_run(record.job_id, node)
            if run.state in states:
                return run
            await trio.sleep(_POLL)

    async def wait_end(self, client: ShoveyClient, record: JobRecord, node: str) -> job_pb.Run:
        """Waits until a run has ended."""
        while not (run := await client.get_run(record.job_id, node)).HasField("finished_at"):
            await trio.sleep(_POLL)
        return run

    async def is_serving(self, service: str = "") -> bool:
        """What the daemon's health service says.

        Raises:
            RpcError: the daemon is not there, or has no such service.
        """
        check: Method[Any, Any] = service_methods(health_pb2.DESCRIPTOR.services_by_name["Health"])["Check"]
        server, tls, _ = self.fleet.client_tls()
        async with open_channel(server, tls) as channel:
            answer = await channel.unary(check, health_pb2.HealthCheckRequest(service=service))
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    # -- harm

    async def kill_daemon(self) -> None:
        """kill -9."""
        await self.fleet.controller.kill()

    async def start_daemon(self) -> None:
        """Starts it unless it runs; returns at once."""
        if self.fleet.controller.pid is None:
            await self.fleet.controller.start()

    async def kill_agent(self, node: str) -> None:
        """kill -9 of the agent; supervisors and commands live on."""
        await self.fleet.nodes[node].agent.kill()

    async def start_agent(self, node: str) -> None:
        """Starts it unless it runs; returns at once."""
        agent = self.fleet.nodes[node].agent
        if agent.pid is None:
            await agent.start()

    def kill_supervisors(self, node: str, number: signal.Signals = signal.SIGKILL) -> int:
        """kill -9, or another signal, of every supervisor of a node; how many there were."""
        killed = 0
        for pidfd in open_supervisors(self.fleet.nodes[node]):
            try:
                signal.pidfd_send_signal(pidfd, number)
                killed += 1
            except ProcessLookupError:
                pass
            finally:
                os.close(pidfd)
        return killed

    def set_failpoints(self, *lines: str) -> None:
        """Makes these the failpoints of the daemon, of every agent and of every supervisor; none clears them."""
        if not lines:
            self._plan.unlink(missing_ok=True)
            return
        for counter in self._plan.parent.glob(self._plan.name + ".*"):
            counter.unlink()
        temporary = self._plan.with_name("plan-" + self._plan.name)
        temporary.write_text("\n".join(lines) + "\n", "utf-8")
        temporary.replace(self._plan)

    def passes(self, name: str) -> int:
        """How often a failpoint of the present plan was passed."""
        return failpoints.passes(str(self._plan), name)

    # -- the end

    async def restore(self) -> None:
        """Ends every fault and starts what is not running; what dies after that is started by ``settle``."""
        self.set_failpoints()
        self.clocks.set_right()
        self.relay.delay = 0.0
        self.relay.set_weather(Weather.FAIR)
        await self._start_what_is_down()

    @asynccontextmanager
    async def kept_running(self) -> AsyncIterator[None]:
        """Starts what dies again while the block runs, as systemd's Restart=always does."""

        async def keep() -> None:
            while True:
                await self._start_what_is_down()
                await trio.sleep(_POLL)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep)
            yield
            nursery.cancel_scope.cancel(reason="what may die now stays dead")

    async def settle(self) -> list[Violation]:
        """Restores, waits for every job to end, and judges the history so far, which begins anew."""
        await self.restore()
        return await self.settle_under_fault()

    async def settle_under_fault(self) -> list[Violation]:
        """The same without ending what goes on: for faults under which every job must end all the same."""
        async with self.kept_running():
            async with self.open_client() as client:
                records, self.history = self.history, []
                acknowledged = [record for record in records if record.job_id]
                results = [await self._results(client, record) for record in acknowledged]
            while self._watching:
                await self._watched.wait()
        run_ids = {result.run.id for by_node in results for result in by_node.values()}
        counted = starts(self.ledger)
        alive = await trio.to_thread.run_sync(survivors, run_ids)
        found: list[Violation] = []
        for record, by_node in zip(acknowledged, results, strict=True):
            found += judge_job(record, by_node, starts=counted, alive=alive)
        async with open_store(self.fleet.data.store, exclusive=False) as store:
            for record in acknowledged:
                events = await store.read_events(record.job_id, after_seq=0, limit=100_000, include_output=False)
                found += judge_events(record, events)
        # What a lost answer to a start has left behind is nobody's job, and yet must not have run twice.
        found += [
            Violation(rule=Rule.SECOND_START, subject=run_id, detail=f"started {count} times")
            for run_id, count in counted.items()
            if count > 1 and run_id not in run_ids
        ]
        self.ledger.unlink(missing_ok=True)
        return found

    async def _start_what_is_down(self) -> None:
        await self.start_daemon()
        for node in self.fleet.nodes:
            await self.start_agent(node)

    async def _results(self, client: ShoveyClient, record: JobRecord) -> Mapping[str, RunResult]:
        try:
            await self._wait_terminal(client, record)
        except RpcError as error:
            if error.reason == "NOT_FOUND":
                return {}
            raise
        results = {}
        async for run in client.list_runs(record.job_id):
            output = {job_pb.OUTPUT_STREAM_STDOUT: bytearray(), job_pb.OUTPUT_STREAM_STDERR: bytearray()}
            async with client.read_output(record.job_id, run.node) as reader:
                async for message in reader:
                    output[message.chunk.stream] += message.chunk.data
            results[run.node] = RunResult(
                run=run,
                stdout=bytes(output[job_pb.OUTPUT_STREAM_STDOUT]),
                stderr=bytes(output[job_pb.OUTPUT_STREAM_STDERR]),
            )
        return results

    @staticmethod
    async def _wait_terminal(client: ShoveyClient, record: JobRecord) -> None:
        async with client.watch_job(record.job_id) as watch:
            async for _ in watch:
                pass

    async def _watch(self, record: JobRecord) -> None:
        """Takes note of the commit sequence of every event that the watcher of a job is given."""
        try:
            async with self.open_client() as client, client.watch_job(record.job_id) as watch:
                async for message in watch:
                    position = decode_resume(message.resume_token, record.job_id)
                    assert position is not None
                    if message.HasField("snapshot"):
                        record.watched_from = position.changes
                    else:
                        record.watched.append(position.changes)
        finally:
            self._watching -= 1
            self._watched.set()
            self._watched = trio.Event()


async def until(holds: Callable[[], bool]) -> None:
    """Waits for something that only other processes make true."""
    while not holds():  # noqa: ASYNC110 - they have no event to wait for
        await trio.sleep(_POLL)


@asynccontextmanager
async def open_bench(
    directory: Path,
    *,
    nodes: Sequence[str] = ("web-1", "web-2", "web-3"),
    on_demand: Sequence[str] = (),
    serf: bool = False,
    settings: Mapping[str, str] | None = None,
    agent_settings: Mapping[str, object] | None = None,
    commands: Mapping[str, object] | None = None,
) -> AsyncIterator[FaultBench]:
    """A bench whose nodes are up; at the end every process of it is ended, commands too.

    Args:
        directory: for everything; the caller removes it.
        nodes: names of attached nodes.
        on_demand: names of nodes without a stream while idle; they need serf.
        serf: whether there are real serf agents.
        settings, agent_settings: beside those that compress time.
        commands: entries of the whitelist beside those of ``workload``.
    """
    plan, ledger = directory / "failpoints", directory / "ledger"
    environ, clocks = {failpoints.VARIABLE: str(plan)}, Clocks(directory / "clocks")
    async with open_relay() as relay, trio.open_nursery() as nursery:
        specs = [
            NodeSpec(
                name=name,
                link="on-demand" if name in on_demand else "attached",
                whitelist={**whitelist(ledger), **(commands or {})},
                settings={
                    **AGENT_SETTINGS,
                    **(agent_settings or {}),
                    "agent.server": f"127.0.0.1:{relay.port}",
                },
                environ={**environ, **clocks.environment(name)},
            )
            for name in (*nodes, *on_demand)
        ]

        def aim(fleet: Fleet) -> None:
            relay.target = int(fleet.client_tls()[0].rpartition(":")[2])

        controller = {**CONTROLLER_SETTINGS, **(settings or {})}
        async with open_fleet(
            directory,
            specs,
            serf=serf,
            settings=controller,
            environ={**environ, **clocks.environment(CONTROLLER)},
            before_agents=aim,
        ) as fleet:
            yield FaultBench(fleet, relay, clocks, plan=plan, ledger=ledger, nursery=nursery)
            nursery.cancel_scope.cancel(reason="the bench closes")


def supervisor_pids(node: FleetNode) -> list[int]:
    """The pids of a node's supervisors whose run has not ended; some may be gone by now."""
    return [pid for pid, _ in _supervisors(node)]


def open_supervisors(node: FleetNode) -> list[int]:
    """Pidfds of a node's living supervisors; the caller closes them."""
    from shovey_agent.supervisor.proc_posix import open_process

    return [pidfd for pid, started in _supervisors(node) if (pidfd := open_process(pid, started)) is not None]


def _supervisors(node: FleetNode) -> Iterator[tuple[int, int]]:
    for record in (node.state_dir / "runs").glob("*/supervisor.json"):
        try:
            claim = json.loads(record.read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(claim.get("pid"), int) and not (record.parent / "exit.json").exists():
            yield claim["pid"], claim["start_time"]
