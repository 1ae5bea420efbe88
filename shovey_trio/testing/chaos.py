"""Chaos: rounds of load with one fault each, chosen at random from a seed, and the whole history judged after each.

A round starts jobs of every kind on every node, cancels those that never end, does its harm at a random moment, puts
everything back and waits for the truth. ``tools/chaos.sh`` runs it; ``--seed`` and the round's number make a round's
choices again (its timing is the machine's own).
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import trio

from shovey_trio.core.errors import Unreachable
from shovey_trio.rpc.bridge import RpcError
from shovey_trio.testing.big_output import BIG_OUTPUT_SETTINGS, Measured, big_output_commands, measure_big_output
from shovey_trio.testing.cancels import Cancels, cancel_hostile_trees
from shovey_trio.testing.faults import FaultBench, open_bench
from shovey_trio.testing.history import JobRecord, Rule, Violation
from shovey_trio.testing.relay import Weather
from shovey_trio.testing.serf_agents import find_serf
from shovey_trio.testing.workload import COMMANDS

NODES = ("web-1", "web-2", "web-3")
ON_DEMAND = ("db-1",)
# No round takes this long unless something hangs, and then that is the finding.
_ROUND_LIMIT = 120.0
_LOAD_BEFORE = 0.6
# What a run with much output may cost: agent, zygote and supervisor together, and the daemon.
_AGENT_MEMORY = 64 * 2**20
_DAEMON_MEMORY = 256 * 2**20

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
_SUPERVISOR_LOST = frozenset({"supervisor_lost"})


@dataclass(slots=True, kw_only=True)
class Tally:
    """What a fault has led to."""

    rounds: int = 0
    jobs: int = 0
    violations: list[Violation] = field(default_factory=list)


class Round:
    """One round: the bench, its own randomness, and what it has started."""

    def __init__(self, bench: FaultBench, choice: random.Random) -> None:
        self.bench = bench
        self.choice = choice
        self.jobs = 0

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A kind of harm, and the causes it may truthfully end a run with."""

    name: str
    harm: Harm
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
    Fault(name="daemon and agents: kill -9", harm=_kill_everything, excused=_NONCE_USED),
    Fault(name="network: cut", harm=_cut),
    Fault(name="network: silent, half-open", harm=_half_open),
    Fault(name="serf: kill -9", harm=_kill_serf, needs_serf=True),
)


async def run_round(bench: FaultBench, fault: Fault, choice: random.Random) -> tuple[int, list[Violation]]:
    """One round of a fault; the number of its jobs and the rules it broke."""
    round_ = Round(bench, choice)
    with trio.move_on_after(_ROUND_LIMIT):
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(round_.load, fault.excused)
                await fault.harm(round_)
                # The load itself may wait for what the fault has taken away.
                await bench.restore()
            return round_.jobs, await bench.settle()
        except* (RpcError, Unreachable) as errors:
            failure = Violation(rule=Rule.NO_END, subject=fault.name, detail=repr(errors.exceptions))
        return round_.jobs, [failure]
    unfinished = ", ".join(f"{record.command} {record.job_id or 'not acknowledged'}" for record in bench.history)
    hung = Violation(rule=Rule.NO_END, subject=fault.name, detail=f"nothing after {_ROUND_LIMIT:g} s: {unfinished}")
    return round_.jobs, [hung]


async def run_chaos(
    directory: Path,
    *,
    seed: int,
    minutes: float,
    rounds: int,
    only: str = "",
    report: Callable[[str], None] = print,
) -> Mapping[str, Tally]:
    """Rounds of every fault in turn until the time or the number of rounds is over; what each has led to.

    Args:
        directory: for the fleet; left as it is, for who wants to read the logs.
        seed: of all choices.
        minutes: when no further round begins.
        rounds: the most rounds.
        only: part of the names of the faults to use.
        report: gets a line for each violation, as soon as it is found.
    """
    with_serf = find_serf() is not None
    faults = [fault for fault in FAULTS if only in fault.name and (with_serf or not fault.needs_serf)]
    tallies = {fault.name: Tally() for fault in faults}
    until = trio.current_time() + minutes * 60
    async with open_bench(directory, nodes=NODES, on_demand=ON_DEMAND if with_serf else (), serf=with_serf) as bench:
        for number in range(rounds):
            if trio.current_time() >= until:
                break
            choice = random.Random(f"{seed}/{number}")  # noqa: S311 - a test's choices, to be repeated
            fault = faults[number % len(faults)]
            tally = tallies[fault.name]
            jobs, violations = await run_round(bench, fault, choice)
            tally.rounds += 1
            tally.jobs += jobs
            tally.violations += violations
            for violation in violations:
                report(f"round {number} ({fault.name}): {violation}")
            if any(violation.rule is Rule.NO_END for violation in violations):
                report("the fleet is not what it was; no further rounds")
                break
    return tallies


def table(tallies: Mapping[str, Tally]) -> str:
    """The tallies for a terminal."""
    lines = [f"{'fault':34} {'rounds':>6} {'jobs':>6} {'violations':>10}"]
    lines += [
        f"{name:34} {tally.rounds:>6} {tally.jobs:>6} {len(tally.violations):>10}" for name, tally in tallies.items()
    ]
    rounds = sum(tally.rounds for tally in tallies.values())
    jobs = sum(tally.jobs for tally in tallies.values())
    violations = sum(len(tally.violations) for tally in tallies.values())
    return "\n".join([*lines, f"{'all':34} {rounds:>6} {jobs:>6} {violations:>10}"])


def main() -> int:
    """``python -m shovey_trio.testing.chaos``; 1 when a rule was broken."""
    parser = argparse.ArgumentParser(prog="tools/chaos.sh", description="Break things; check that nothing is lost.")
    parser.add_argument("--minutes", type=float, default=5.0, help="no round begins after this (default: 5)")
    parser.add_argument("--rounds", type=int, default=1_000_000, help="at most so many rounds")
    parser.add_argument("--seed", type=int, default=None, help="repeats the choices of an earlier run")
    parser.add_argument("--only", default="", help="only faults with this in their name")
    parser.add_argument(
        "--output-mib", type=int, default=0, help="instead: one run with so much output (16, 128, 1024)"
    )
    parser.add_argument("--cancels", type=int, default=0, help="instead: so many cancels of hostile trees")
    parser.add_argument("--keep", action="store_true", help="keep the directory with all logs, whatever happens")
    options = parser.parse_args()
    seed = int(time.time()) if options.seed is None else options.seed
    directory = Path(tempfile.mkdtemp(prefix="shovey-chaos-"))
    if options.output_mib:
        return _measure_output(directory, options.output_mib)
    if options.cancels:
        return _cancel(directory, options.cancels)
    print(f"seed {seed}, {options.minutes:g} minutes", flush=True)
    tallies: Mapping[str, Tally] = {}

    async def run() -> None:
        nonlocal tallies
        tallies = await run_chaos(
            directory,
            seed=seed,
            minutes=options.minutes,
            rounds=options.rounds,
            only=options.only,
            report=lambda line: print(line, flush=True),
        )

    trio.run(run)
    print(table(tallies))
    broken = any(tally.violations for tally in tallies.values())
    if broken or options.keep:
        print(f"logs are in {directory}; again with --seed {seed}")
    else:
        shutil.rmtree(directory, ignore_errors=True)
    return 1 if broken else 0


def _measure_output(directory: Path, mebibytes: int) -> int:
    async def run() -> Measured:
        commands, settings = big_output_commands(), BIG_OUTPUT_SETTINGS
        async with open_bench(directory, nodes=NODES[:1], agent_settings=settings, commands=commands) as bench:
            return await measure_big_output(bench, mebibytes=mebibytes)

    try:
        measured = trio.run(run)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print(f"{mebibytes} MiB: {measured}")
    within = measured.agent_peak <= _AGENT_MEMORY and measured.daemon_peak <= _DAEMON_MEMORY
    return 0 if within and measured.got == measured.written else 1


def _cancel(directory: Path, runs: int) -> int:
    async def run() -> Cancels:
        async with open_bench(directory, nodes=NODES) as bench:
            return await cancel_hostile_trees(bench, runs=runs)

    try:
        cancels = trio.run(run)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    for violation in cancels.violations:
        print(violation)
    print(cancels)
    return 1 if cancels.violations else 0


if __name__ == "__main__":
    sys.exit(main())
