"""One job for many nodes, against fake agents in the same process: how long it takes, how long the loop stands still.

Usage: python bench/fanout_fake.py [--runs 1000] [--store memory|sqlite|both] [--rounds 3] [--slice N] [--default-gc]
The bars for 1,000 runs: at most 2 s from the call to the durable end of the job, and no stall above 50 ms. A full
collection of Python's cyclic garbage stands still for 60 to 190 ms here; --default-gc shows it. Figures are of the
thread's own time beside the wall's, because other processes on the machine are not ours to blame.
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import structlog
import trio

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the laboratory is not in the wheel

from lab.fake_agents import FakeAgent, Script
from lab.memory_store import MemoryStore
from lab.nursery_rig import open_rig
from shovey_trio.core.jobs.states import RunState
from shovey_trio.nursery.clock import WallClock
from shovey_trio.nursery.settings import Bounds
from shovey_trio.store.contract import Store
from shovey_trio.store.opening import open_store


class Stalls(trio.abc.Instrument):
    """The longest time between two looks of the loop at the world, and the longest step of one task."""

    def __init__(self) -> None:
        self.longest = 0.0
        self.longest_step = 0.0
        self._woke_at = time.thread_time()
        self._stepped_at = time.thread_time()

    def after_io_wait(self, timeout: float) -> None:
        self._woke_at = time.thread_time()

    def before_io_wait(self, timeout: float) -> None:
        self.longest = max(self.longest, time.thread_time() - self._woke_at)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._stepped_at = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.longest_step = max(self.longest_step, time.thread_time() - self._stepped_at)


@asynccontextmanager
async def _open(kind: str) -> AsyncIterator[Store]:
    if kind == "memory":
        yield MemoryStore()
        return
    with tempfile.TemporaryDirectory() as directory:
        async with open_store(Path(directory) / "store.db") as store:
            yield store


async def _measure(kind: str, runs: int, rounds: int, bounds: Bounds) -> None:
    clock = WallClock()
    agents = [FakeAgent(f"node-{number:05}", clock=clock, script=Script()) for number in range(runs)]
    names = [agent.node for agent in agents]
    async with _open(kind) as store, open_rig(store, clock=clock, bounds=bounds) as rig, trio.open_nursery() as nursery:
        await rig.register(names)
        for agent in agents:
            nursery.start_soon(agent.serve)
            agent.connect(rig.inbox)
        while len(rig.links) < runs:  # noqa: ASYNC110 - before anything is measured
            await trio.sleep(0.05)
        for number in range(rounds):
            await trio.sleep(0.5)
            stalls = Stalls()
            trio.lowlevel.add_instrument(stalls)
            began = time.perf_counter()
            job = await rig.start(*names)
            ended = await rig.ended(job.id)
            took = time.perf_counter() - began
            trio.lowlevel.remove_instrument(stalls)
            assert ended.run_counts == {RunState.SUCCEEDED: runs}, ended
            print(
                f"{kind:6} round {number + 1}: {runs} runs in {took:5.2f} s, "
                f"longest stall {stalls.longest * 1e3:5.1f} ms, "
                f"longest step of a task {stalls.longest_step * 1e3:5.1f} ms"
            )
        nursery.cancel_scope.cancel(reason="measured")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slice", type=int, default=Bounds().slice)
    parser.add_argument("--store", choices=["memory", "sqlite", "both"], default="both")
    parser.add_argument("--default-gc", action="store_true")
    asked = parser.parse_args()
    if not asked.default_gc:
        gc.freeze()
        gc.set_threshold(10_000, 50, 100)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    for kind in ["memory", "sqlite"] if asked.store == "both" else [asked.store]:
        trio.run(_measure, kind, asked.runs, asked.rounds, replace(Bounds(), slice=asked.slice))


if __name__ == "__main__":
    main()
