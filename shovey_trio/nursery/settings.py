"""What the nursery may be told: one frozen value, made from the configuration at the border.

Durations are seconds. The defaults are those of docs/configuration.md, which a test compares.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from shovey_trio.core.jobs.model import Job, Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long the controller waits for what.

    Attributes:
        acceptance: how long a start order may be accepted after its run was released; also its expiry.
        spread_per_target: on-demand agents attach spread over this much per target, so that none stampede.
        order_attempts: how often a node without a stream is rung.
        ring_pause: before the second ring; doubled for each further one, plus up to half of it, another for each job.
        ring_linger: how long the first ring of a job waits for others of it, so that one query serves all.
        cancel_retry: how long a cancel order may stay unanswered before it is sent again.
        overdue_margin: how much later than the node's own deadline the controller steps in.
        reconnect_grace: how long a silent node may heal a run before the run becomes ``crashed``.
        stream_lost_after: how long an attached agent's stream may be gone before the node is down.
        on_demand_fresh: how long an on-demand agent counts as up after it was last heard.
        store_retry: longest pause between attempts to write while the store is unavailable.
    """

    acceptance: float = 60.0
    spread_per_target: float = 0.005
    order_attempts: int = 3
    ring_pause: float = 5.0
    ring_linger: float = 0.01
    cancel_retry: float = 5.0
    overdue_margin: float = 30.0
    reconnect_grace: float = 900.0
    stream_lost_after: float = 15.0
    on_demand_fresh: float = 900.0
    store_retry: float = 5.0

    def acceptance_until(self, job: Job, run: Run) -> float:
        """Until when the start order of a released run may be accepted, in unix seconds.

        Derived from what is stored, so it is the same after a restart.
        """
        return run.times_from + self.acceptance + math.ceil(self.spread_per_target * job.run_total)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How much the controller holds in memory at most; beyond it requests are refused with OVERLOADED.

    Attributes:
        live_jobs: jobs with an open nursery.
        live_runs: runs of all those jobs, about 8 KiB each while they wait.
        watchers: open WatchJob and following ReadOutput calls.
        watchers_per_caller: those of one caller.
        attached: open control streams, about 94 KiB each with TLS.
        slice: runs started or cancelled before other tasks get a turn. A run is about 15 steps of 60 µs until it ends,
            and slices overlap by as many: 25 × 15 × 60 µs = 22 ms is one round of the loop (bench/fanout_fake.py).
        run_output: bytes of output that are taken of one run, whatever its node has agreed to keep.
        output_buffer: bytes of output that are received and not yet durable, over all agents.
    """

    live_jobs: int = 2_000
    live_runs: int = 50_000
    watchers: int = 2_000
    watchers_per_caller: int = 200
    attached: int = 20_000
    slice: int = 25
    output_buffer: int = 64 * 1024 * 1024
    run_output: int = 257 * 1024 * 1024
