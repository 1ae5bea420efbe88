"""The faults that chaos chooses from: what each does to a bench, and which ends of runs it may truthfully lead to."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import trio

from lab.clocks import CONTROLLER, STEPS
from lab.faults import FaultBench
from lab.history import JobRecord, Rule, Violation
from lab.relay import Weather
from lab.restored import copy_store, put_back, restored_once
from lab.workload import COMMANDS
from shovey_trio.rpc.client.client import ShoveyClient
from shovey_trio.v1 import job_pb2 as job_pb

# Seconds of load before something happens, at most.
_LOAD_BEFORE = 0.6

# Where the daemon can die or fail: between any two steps of any write.
DAEMON_POINTS: Sequence[str] = (
    "store.commit.before",
    "store.commit.after",
    "store.listener",
    "store.create_job.before",
    "store.create_job.after",
    "store.write_run.before",
    "store.write_run.after",
    "store.write_job.before",
    "store.write_job.after",
    "store.append_output.before",
    "store.append_output.after",
    "store.write_node.after",
)
# Where an agent can die: each step by which a run becomes durable, is ended and is cleared.
AGENT_POINTS: Sequence[str] = (
    "nonces.append.before",
    "nonces.append.written",
    "nonces.append.after",
    "spool.create.before",
    "spool.exit.reserve.before",
    "spool.exit.reserve.after",
    "spool.order.before",
    "spool.order.empty",
    "spool.order.after",
    "spool.output.after",
    "spool.spec.before",
    "spool.spec.empty",
    "spool.spec.after",
    "spool.create.after",
    "spool.cancel.before",
    "spool.cancel.named",
    "spool.reported.before",
    "spool.reported.after",
    "spool.remove.named",
)
# Where a supervisor can die: the outcome of its run is lost, and must be called so.
SUPERVISOR_POINTS: Sequence[str] = (
    "spool.supervisor.before",
    "spool.supervisor.named",
    "supervisor.spawn.before",
    "supervisor.spawn.after",
    "spool.started.before",
    "spool.started.named",
    "spool.append.before",
    "spool.exit.before",
    "spool.exit.written",
    "spool.exit.named",
    "spool.exit.after",
)
# The agent died after it had used the nonce up and before it had made the run durable: the run never started.
_NONCE_USED = frozenset({"replayed", "supervisor_lost/never_started"})
_NODE_DOWN = frozenset({"node_down"})
# An order that was sent by one time and not answered before the next; a key that was not made yet; a doorbell that a
# node's clock forbids.
_WRONG_TIME = frozenset({"not_accepted", "expired", "no_route"})
# Seconds within which every node must run jobs once all clocks are right.
_IN_SERVICE = 60.0
_SUPERVISOR_LOST = frozenset({"supervisor_lost"})


class Round:
    """One round: the bench, its own randomness, and what it has started."""

    def __init__(self, bench: FaultBench, choice: random.Random) -> None:
        self.bench = bench
        self.choice = choice
        self.jobs = 0
        self.violations: list[Violation] = []

    async def moment(self, longest: float = _LOAD_BEFORE) -> None:
        """Waits for a random moment of the load."""
        await trio.sleep(self.choice.uniform(0, longest))

    def node(self) -> str:
        return self.choice.choice(sorted(self.bench.fleet.nodes))

    async def load(self, excused: frozenset[str], *, task_status: trio.TaskStatus[None]) -> None:
        """Starts jobs one after the other and cancels those that would never end."""
        task_status.started()
        async with self.bench.open_client() as client, trio.open_nursery() as nursery:
            for command in self.choice.sample(sorted(COMMANDS), k=len(COMMANDS)):
                # A job that is started while a node is down has no run there, and says so.
                record = await self.bench.start_job(client, command, excused=excused | _NODE_DOWN)
                self.jobs += 1
                if COMMANDS[command].exit_code is None:
                    delay = self.choice.uniform(0, 2 * _LOAD_BEFORE)
                    nursery.start_soon(self._cancel_later, record, delay)
                await self.moment(0.2)

    async def out_of_service(self, client: ShoveyClient, nodes: Sequence[str]) -> Sequence[str]:
        """Which of these nodes do not run a job that is started now."""
        record = await self.bench.start_job(client, "quick", nodes, watch=False, excused=_WRONG_TIME | _NODE_DOWN)
        self.jobs += 1
        ended = [await self.bench.wait_end(client, record, node) for node in nodes]
        return [run.node for run in ended if run.state != job_pb.RUN_STATE_SUCCEEDED]

    async def _cancel_later(self, record: JobRecord, delay: float) -> None:
        await trio.sleep(delay)
        async with self.bench.open_client() as client:
            await self.bench.cancel_job(client, record)


Harm = Callable[[Round], Awaitable[None]]


async def _no_harm(_: Round) -> None:
    await trio.lowlevel.checkpoint()


async def _kill_daemon(round_: Round) -> None:
    await round_.moment()
    await round_.bench.kill_daemon()
    await round_.bench.start_daemon()


async def _kill_daemon_twice(round_: Round) -> None:
    await _kill_daemon(round_)
    await round_.moment(2.0)  # in the middle of its start, or of taking up its jobs
    await _kill_daemon(round_)


async def _drain_daemon(round_: Round) -> None:
    await round_.moment()
    await round_.bench.fleet.controller.stop()
    await round_.bench.start_daemon()


async def _daemon_failpoint(round_: Round) -> None:
    point = round_.choice.choice(DAEMON_POINTS)
    round_.bench.set_failpoints(f"{point} crash skip={round_.choice.randrange(12)}")
    with trio.move_on_after(3.0):
        await round_.bench.fleet.controller.wait()
    round_.bench.set_failpoints()


async def _store_fails(round_: Round) -> None:
    await round_.moment()
    error = round_.choice.choice(["EIO", "ENOSPC"])
    round_.bench.set_failpoints(f"store.commit.before error {error}")
    await trio.sleep(round_.choice.uniform(0.1, 1.5))
    round_.bench.set_failpoints()


async def _store_slow(round_: Round) -> None:
    round_.bench.set_failpoints(f"store.commit.before delay {round_.choice.uniform(0.05, 0.3):.3f}")
    await round_.moment(2.0)
    round_.bench.set_failpoints()


async def _kill_agent(round_: Round) -> None:
    await round_.moment(2 * _LOAD_BEFORE)
    node = round_.node()
    await round_.bench.kill_agent(node)
    await round_.bench.start_agent(node)


async def _kill_everything(round_: Round) -> None:
    await round_.moment()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(round_.bench.kill_daemon)
        for node in round_.bench.fleet.nodes:
            nursery.start_soon(round_.bench.kill_agent, node)


async def _agent_failpoint(round_: Round) -> None:
    point = round_.choice.choice(AGENT_POINTS)
    round_.bench.set_failpoints(f"{point} crash skip={round_.choice.randrange(8)}")
    await trio.sleep(3.0)
    round_.bench.set_failpoints()


async def _supervisor_failpoint(round_: Round) -> None:
    point = round_.choice.choice(SUPERVISOR_POINTS)
    round_.bench.set_failpoints(f"{point} crash skip={round_.choice.randrange(8)} times=2")
    await trio.sleep(2.0)
    round_.bench.set_failpoints()


async def _kill_supervisors(round_: Round) -> None:
    await round_.moment(2 * _LOAD_BEFORE)
    round_.bench.kill_supervisors(round_.node())


async def _cut(round_: Round) -> None:
    for _ in range(round_.choice.randint(1, 3)):
        await round_.moment()
        round_.bench.relay.set_weather(Weather.CUT)
        await round_.moment(1.5)
        round_.bench.relay.set_weather(Weather.FAIR)


async def _half_open(round_: Round) -> None:
    await round_.moment()
    round_.bench.relay.set_weather(round_.choice.choice([Weather.SILENT, Weather.DEAF, Weather.MUTE]))
    await round_.moment(3.0)
    if round_.choice.random() < 0.5:
        # What was on its way is lost with the connections, acknowledgements too.
        round_.bench.relay.set_weather(Weather.CUT)
        await trio.lowlevel.checkpoint()


async def _kill_serf(round_: Round) -> None:
    agents = [node.serf for node in round_.bench.fleet.nodes.values()] + [round_.bench.fleet.serf]
    agent = round_.choice.choice([agent for agent in agents if agent is not None])
    others = [other.gossip_port for other in agents if other is not None and other is not agent]
    await round_.moment()
    await agent.kill()
    await round_.moment(1.0)
    await agent.start(join=others)


async def _forks(round_: Round) -> None:
    async with round_.bench.open_client() as client:
        record = await round_.bench.start_job(client, "storm", [round_.node()], excused=_NODE_DOWN)
        round_.jobs += 1
        await round_.moment(2 * _LOAD_BEFORE)
        await round_.bench.cancel_job(client, record)


async def _older_copy(round_: Round) -> None:
    bench = round_.bench
    copy = bench.fleet.data.store.with_name("older-copy")
    async with bench.open_client() as client:
        for command in ("quick", "chatter", "fails"):
            # Nobody watches: what a watcher was given of the time behind the copy has never been.
            await bench.start_job(client, command, watch=False, excused=_NODE_DOWN | {"store_restored"})
            round_.jobs += 1
            await round_.moment(0.2)
    copy_store(bench.fleet.data.store, copy)
    await round_.moment(2.0)
    await (bench.kill_daemon() if round_.choice.random() < 0.5 else bench.fleet.controller.stop())
    put_back(copy, bench.fleet.data.store)
    with restored_once(bench.fleet):
        await bench.start_daemon()
        await bench.fleet.wait_up()


async def _step_clocks(round_: Round) -> None:
    """Sets one clock or all, waits for a moment in which the step may be taken over, and sets them right again."""
    bench, choice = round_.bench, round_.choice
    names = (CONTROLLER, *bench.fleet.nodes)
    await round_.moment()
    for _ in range(choice.randint(1, 2)):
        for name in names if choice.random() < 0.3 else (choice.choice(names),):
            bench.clocks.set(name, choice.choice(STEPS))
        await round_.moment(4.0)
    bench.clocks.set_right()
    late: Sequence[str] = sorted(bench.fleet.nodes)
    with trio.move_on_after(_IN_SERVICE):
        async with bench.open_client() as client:
            while late:
                late = await round_.out_of_service(client, late)
            # What is still sent by the wrong time would be the next round's: a restart finds it expired.
            while abs((await client.get_server_info()).server_time.ToNanoseconds() / 1e9 - time.time()) > 2:  # noqa: ASYNC110
                await trio.sleep(0.1)
    round_.violations += [
        Violation(rule=Rule.OUT_OF_SERVICE, subject=node, detail=f"no run in {_IN_SERVICE:g} s with right clocks")
        for node in late
    ]


async def _stop_supervisors(round_: Round) -> None:
    """What a command can do to its supervisor too; cancels are carried out all the same, by the guardian above it.

    What nobody cancels goes on when its supervisor does: a command without a reader of its output waits.
    """
    await round_.moment(2 * _LOAD_BEFORE)
    node = round_.node()
    round_.bench.kill_supervisors(node, signal.SIGSTOP)
    await trio.sleep(round_.choice.uniform(1.0, 6.0))
    round_.bench.kill_supervisors(node, signal.SIGCONT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A kind of harm, and the causes it may truthfully end a run with; ``loaded``: while jobs of every kind run."""

    name: str
    harm: Harm
    loaded: bool = True
    excused: frozenset[str] = frozenset()
    needs_serf: bool = False


FAULTS: Sequence[Fault] = (
    Fault(name="none", harm=_no_harm),
    Fault(name="daemon: kill -9", harm=_kill_daemon),
    Fault(name="daemon: kill -9 twice", harm=_kill_daemon_twice),
    Fault(name="daemon: TERM", harm=_drain_daemon),
    Fault(name="daemon: dies at a write", harm=_daemon_failpoint),
    Fault(name="store: I/O error, disk full", harm=_store_fails),
    Fault(name="store: slow", harm=_store_slow),
    Fault(name="agent: kill -9", harm=_kill_agent, excused=_NONCE_USED),
    Fault(name="agent: dies at a spool step", harm=_agent_failpoint, excused=_NONCE_USED | _SUPERVISOR_LOST),
    Fault(name="supervisor: kill -9", harm=_kill_supervisors, excused=_SUPERVISOR_LOST),
    Fault(name="supervisor: dies at a step", harm=_supervisor_failpoint, excused=_SUPERVISOR_LOST),
    Fault(name="supervisor: stopped", harm=_stop_supervisors, excused=_SUPERVISOR_LOST),
    Fault(name="clock steps", harm=_step_clocks, excused=_WRONG_TIME),
    Fault(name="daemon and agents: kill -9", harm=_kill_everything, excused=_NONCE_USED),
    Fault(name="store: an older copy is restored", harm=_older_copy, loaded=False),
    Fault(name="command: a storm of forks", harm=_forks),
    Fault(name="network: cut", harm=_cut),
    Fault(name="network: silent, half-open", harm=_half_open),
    Fault(name="serf: kill -9", harm=_kill_serf, needs_serf=True),
)
