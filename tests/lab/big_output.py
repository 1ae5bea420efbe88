"""One run with very much output and a reader that is slower than the command: bytes and memory, measured."""

from __future__ import annotations

import contextlib
import hashlib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from lab.faults import FaultBench, supervisor_pids
from shovey_trio.demo.operator import open_operator
from shovey_trio.v1 import job_pb2 as pb

BIG_OUTPUT_SETTINGS: Mapping[str, object] = {"runs.output_cap": "4GiB", "runs.spool_cap": "8GiB"}
# Writes so many MiB of bytes that do not compress, and their SHA-256 at the end on the other stream.
_WRITE = """
import hashlib, os, random, sys
block, digest = random.Random(7).randbytes(2 ** 20), hashlib.sha256()
for number in range(int(sys.argv[1])):
    piece = number.to_bytes(8, "big") + block[8:]
    digest.update(piece)
    while piece:
        piece = piece[os.write(1, piece):]
os.write(2, digest.hexdigest().encode())
"""
_SIZES = (16, 128, 1024)
_MIB = 2**20
# What the reader pauses per message (at most 64 KiB each): some 50 MiB/s at best.
_READER_PAUSE = 0.001
_SAMPLE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a run with much output has cost. Memory in bytes; a peak is over the whole run.

    Memory is the proportional share (Pss of proc_pid_smaps_rollup(5)): a page that several processes map counts once.
    Resident memory counts the interpreter's and grpc's files again for each process.

    Attributes:
        agent_peak: of the agent, its zygote and the run's supervisor together.
        agent_growth: how much more that is than the agent and its zygote had before.
        agent_resident: the same processes' resident memory at most.
        command_s: how long the command took; ``reader_s``: how long it was until the reader had everything.
    """

    written: str
    got: str
    agent_peak: int
    agent_growth: int
    agent_resident: int
    daemon_peak: int
    daemon_growth: int
    command_s: float
    reader_s: float

    def __str__(self) -> str:
        verdict = "identical" if self.written == self.got else "NOT IDENTICAL"
        return (
            f"{verdict}; agent, zygote and supervisor {self.agent_peak / _MIB:.0f} MiB at most"
            f" (+{self.agent_growth / _MIB:.0f}; {self.agent_resident / _MIB:.0f} resident),"
            f" daemon {self.daemon_peak / _MIB:.0f} MiB (+{self.daemon_growth / _MIB:.0f});"
            f" command {self.command_s:.1f} s, reader {self.reader_s:.1f} s"
        )


def big_output_commands() -> Mapping[str, object]:
    """The whitelist's entries: ``big-N`` writes N MiB."""
    return {f"big-{size}": {"argv": [sys.executable, "-I", "-S", "-c", _WRITE, str(size)]} for size in _SIZES}


async def measure_big_output(bench: FaultBench, *, mebibytes: int) -> Measured:
    """Runs ``big-N`` on the bench's first node with a slow reader behind it."""
    node = next(iter(bench.fleet.nodes))
    agent, daemon = bench.fleet.nodes[node].agent.pid, bench.fleet.controller.pid
    assert agent is not None
    assert daemon is not None
    agents = [agent, *_children(agent)]
    before = _memory(agents, "Pss"), _memory([daemon], "Pss")
    peak = [*before, 0]

    async def sample() -> None:
        while True:
            pids = [*agents, *supervisor_pids(bench.fleet.nodes[node])]
            peak[0] = max(peak[0], _memory(pids, "Pss"))
            peak[1] = max(peak[1], _memory([daemon], "Pss"))
            peak[2] = max(peak[2], _memory(pids, "Rss"))
            await trio.sleep(_SAMPLE)

    began = trio.current_time()
    digest, said = hashlib.sha256(), b""
    async with trio.open_nursery() as nursery, bench.open_client() as client, open_operator(bench.fleet) as operator:
        nursery.start_soon(sample)
        job_id = await operator.start(f"big-{mebibytes}", node, timeout=900.0)
        async with client.read_output(job_id, node, follow=True) as reader:
            async for message in reader:
                if message.chunk.stream == pb.OUTPUT_STREAM_STDOUT:
                    digest.update(message.chunk.data)
                else:
                    said += message.chunk.data
                await trio.sleep(_READER_PAUSE)
        reader_s = trio.current_time() - began
        run = await client.get_run(job_id, node)
        nursery.cancel_scope.cancel(reason="everything was read")
    return Measured(
        written=said.decode("ascii"),
        got=digest.hexdigest(),
        agent_peak=peak[0],
        agent_growth=peak[0] - before[0],
        agent_resident=peak[2],
        daemon_peak=peak[1],
        daemon_growth=peak[1] - before[1],
        command_s=(run.finished_at.ToMicroseconds() - run.started_at.ToMicroseconds()) / 1e6,
        reader_s=reader_s,
    )


def _memory(pids: Sequence[int], field: str) -> int:
    """A field of the memory of processes, in bytes, added up; one that is gone has none."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            found = re.search(
                rf"^{field}:\s+(\d+) kB$", Path(f"/proc/{pid}/smaps_rollup").read_text("ascii"), re.MULTILINE
            )
            total += int(found[1]) * 1024 if found else 0
    return total


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text("ascii").split()]
    return found
