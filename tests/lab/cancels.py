"""Many cancels of hostile trees: what survives them, and how long the proof takes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import trio

from lab.faults import KILL_GRACE, FaultBench
from lab.history import Violation
from shovey_trio.v1 import job_pb2 as pb

# Jobs at a time, each with a run on every node: enough to be quick, few enough that they do not slow each other's end.
_AT_ONCE = 4
# Beyond the grace, in seconds: what the proof may take on a machine that does nothing else.
PROOF_MARGIN = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancels:
    """What came of them.

    Attributes:
        proof_s: for each run, how long after its cancel was acknowledged the node had its proof, in seconds, sorted.
        violations: the rules that were broken; survivors are among them.
    """

    proof_s: Sequence[float]
    violations: Sequence[Violation]

    def __str__(self) -> str:
        late = sum(took > KILL_GRACE + PROOF_MARGIN for took in self.proof_s)
        median, slowest = self.proof_s[len(self.proof_s) // 2], self.proof_s[-1]
        return (
            f"{len(self.proof_s)} cancelled, {len(self.violations)} violations; proof after {median:.2f} s (median),"
            f" {slowest:.2f} s at most, {late} later than the grace ({KILL_GRACE:g} s) + {PROOF_MARGIN:g} s"
        )


async def cancel_hostile_trees(bench: FaultBench, *, runs: int) -> Cancels:
    """Starts and cancels at least so many runs that ignore TERM and have left their session."""
    proofs: list[float] = []
    violations: list[Violation] = []

    async def one() -> None:
        async with bench.open_client() as client:
            record = await bench.start_job(client, "hostile", watch=False)
            for node in record.nodes:
                await bench.wait_state(client, record, node, pb.RUN_STATE_RUNNING)
            await bench.cancel_job(client, record)
            asked = time.time()
            for node in record.nodes:
                run = await bench.wait_state(client, record, node, pb.RUN_STATE_CANCELLED)
                proofs.append(run.finished_at.ToMicroseconds() / 1e6 - asked)

    while len(proofs) < runs:
        async with trio.open_nursery() as nursery:
            for _ in range(_AT_ONCE):
                nursery.start_soon(one)
        violations += await bench.settle()
    return Cancels(proof_s=sorted(proofs), violations=violations)
