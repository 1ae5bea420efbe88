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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import trio

from lab.big_output import BIG_OUTPUT_SETTINGS, Measured, big_output_commands, measure_big_output
from lab.cancels import Cancels, cancel_hostile_trees
from lab.chaos_faults import FAULTS, Fault, Round
from lab.faults import FaultBench, open_bench
from lab.history import Rule, Violation
from shovey_trio.core.errors import Unreachable
from shovey_trio.demo.serf_agents import find_serf
from shovey_trio.rpc.bridge import RpcError

NODES = ("web-1", "web-2", "web-3")
ON_DEMAND = ("db-1",)
# No round takes this long unless something hangs, and then that is the finding.
_ROUND_LIMIT = 120.0
# What a run with much output may cost: agent, zygote and supervisor together, and the daemon.
_AGENT_MEMORY = 64 * 2**20
_DAEMON_MEMORY = 256 * 2**20


@dataclass(slots=True, kw_only=True)
class Tally:
    """What a fault has led to."""

    rounds: int = 0
    jobs: int = 0
    violations: list[Violation] = field(default_factory=list)


async def run_round(bench: FaultBench, fault: Fault, choice: random.Random) -> tuple[int, list[Violation]]:
    """One round of a fault; the number of its jobs and the rules it broke."""
    round_ = Round(bench, choice)
    with trio.move_on_after(_ROUND_LIMIT):
        try:
            async with trio.open_nursery() as nursery:
                if fault.loaded:
                    await nursery.start(round_.load, fault.excused)
                await fault.harm(round_)
                # The load itself may wait for what the fault has taken away.
                await bench.restore()
            return round_.jobs, [*await bench.settle(), *round_.violations]
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
            choice = random.Random(f"{seed}/{number}")
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
    """``python -m lab.chaos``; 1 when a rule was broken."""
    parser = argparse.ArgumentParser(prog="tools/chaos.sh", description="Break things; check that nothing is lost.")
    parser.add_argument("--minutes", type=float, default=5.0, help="no round begins after this (default: 5)")
    parser.add_argument("--rounds", type=int, default=1_000_000, help="at most so many rounds")
    parser.add_argument("--seed", type=int, default=None, help="repeats the choices of an earlier run")
    parser.add_argument("--only", default="", help="only faults with this in their name")
    parser.add_argument("--output-mib", type=int, choices=(16, 128, 1024), help="instead: one run with so much output")
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
