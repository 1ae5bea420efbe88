"""How long an operator waits: real controller, real agents, real TLS, all on this machine.

``python bench/latency.py [--jobs N] [--wakes N] [--seconds S] [--json FILE]`` (or ``tools/bench.sh``).

* attached: three agents; from the StartJob call to the event of WatchJob that says the job is complete;
* on demand: the same with agents that have no stream until a serf query wakes them, over real serf agents;
* output: from the moment a command writes a line (the line says when) to a reader that follows, through ReadOutput
  and through WatchJob.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import structlog
import trio

from shovey_trio.bench.figures import Bar, Figure, figure, table
from shovey_trio.bench.machine import head, machine
from shovey_trio.demo.fleet import NodeSpec, open_fleet
from shovey_trio.demo.serf_agents import find_serf
from shovey_trio.rpc.client.client import ShoveyClient
from shovey_trio.v1 import job_pb2, job_service_pb2

# `date` costs a fork, about a millisecond, between taking the time and writing it. The pause is no multiple of the
# agents' 100 ms, so that lines fall anywhere between two looks at the log.
WHITELIST: Final = {
    "true": "true",
    "clock": "sh -c 'n=0; while [ $n -lt {lines} ]; do date +%s.%N; sleep 0.037; n=$((n+1)); done'",
}
PAUSE: Final = 0.037
WARM_UP: Final = 5
JOB_DEADLINE: Final = 30.0
# An on-demand agent stays this long when it is idle; the next job must find it gone.
LINGER: Final = 0.2
GONE_POLL: Final = 0.02

_FINISHED: Final = frozenset(
    {
        job_pb2.JOB_STATE_COMPLETE,
        job_pb2.JOB_STATE_QUORUM_FAILED,
        job_pb2.JOB_STATE_CANCELLED,
        job_pb2.JOB_STATE_TIMED_OUT,
        job_pb2.JOB_STATE_CRASHED,
    }
)


class WrongResult(Exception):
    """A job did not end as it should have: what was measured says nothing."""


async def one_job(client: ShoveyClient, command: str) -> float:
    """Runs a job on all nodes; seconds until its watcher hears that it is complete."""
    with trio.fail_after(JOB_DEADLINE):
        began = time.perf_counter()
        job = await start(client, command)
        async with client.watch_job(job.id) as events:
            async for event in events:
                match event.WhichOneof("event"):
                    case "snapshot":
                        job = event.snapshot.job
                    case "job_changed":
                        job = event.job_changed.job
                if job.state in _FINISHED:
                    break
        took = time.perf_counter() - began
        check(await client.get_job(job.id))
        return took


async def start(client: ShoveyClient, command: str) -> job_pb2.Job:
    """Starts a job on all nodes."""
    request = job_service_pb2.StartJobRequest(command=command, target=job_service_pb2.Target(all=True))
    return (await client.start_job(request)).job


def check(job: job_pb2.Job) -> None:
    """Raises ``WrongResult`` unless every run has succeeded."""
    succeeded = sum(each.count for each in job.run_counts if each.state == job_pb2.RUN_STATE_SUCCEEDED)
    if succeeded != job.run_total:
        counts = {job_pb2.RunState.Name(each.state): each.count for each in job.run_counts}
        raise WrongResult(f"job {job.id}: {counts}")


async def measure_attached(jobs: int, seconds: float) -> list[Figure]:
    """Three attached agents."""
    whitelist = {name: text.format(lines=round(seconds / PAUSE)) for name, text in WHITELIST.items()}
    nodes = [NodeSpec(name=f"web-{number}", whitelist=whitelist) for number in range(1, 4)]
    with tempfile.TemporaryDirectory(prefix="shovey-bench-") as directory:
        async with open_fleet(Path(directory), nodes, serf=False) as fleet, fleet.open_client() as client:
            for _ in range(WARM_UP):
                await one_job(client, "true")
            took = [await one_job(client, "true") for _ in range(jobs)]
            read, watched = await measure_output(client)
    return [
        figure("job `true`, 3 attached agents: start to complete", took, bar=Bar(at=0.100)),
        figure("output: written to read (ReadOutput, follow)", read, bar=Bar(at=0.250, of="p99")),
        figure("output: written to read (WatchJob with output)", watched, bar=Bar(at=0.250, of="p99")),
    ]


async def measure_output(client: ShoveyClient) -> tuple[list[float], list[float]]:
    """Follows a job that prints the time, in both ways at once."""
    read: list[float] = []
    watched: list[float] = []
    job = await start(client, "clock")

    async def read_run(node: str) -> None:
        rest = b""
        async with client.read_output(job.id, node, follow=True) as answers:
            async for answer in answers:
                rest = note_delays(rest + answer.chunk.data, read)

    async def watch() -> None:
        rests: dict[str, bytes] = {}
        async with client.watch_job(job.id, include_output=True) as events:
            async for event in events:
                if event.WhichOneof("event") == "output":
                    node = event.output.node
                    rests[node] = note_delays(rests.get(node, b"") + event.output.chunk.data, watched)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        nursery.start_soon(read_run, "web-1")
    check(await client.get_job(job.id))
    return read, watched


def note_delays(data: bytes, delays: list[float]) -> bytes:
    """Adds the age of every whole line, which is when it was written, and returns what is no whole line yet."""
    now = time.time()
    *lines, rest = data.split(b"\n")
    delays.extend(now - float(line) for line in lines)
    return rest


async def measure_on_demand(wakes: int) -> list[Figure]:
    """Three on-demand agents, woken over real serf agents."""
    settings = {"reconnect.linger": f"{LINGER}s"}
    nodes = [
        NodeSpec(name=f"web-{number}", whitelist=WHITELIST, link="on-demand", settings=settings)
        for number in range(1, 4)
    ]
    took: list[float] = []
    with tempfile.TemporaryDirectory(prefix="shovey-bench-") as directory:
        async with open_fleet(Path(directory), nodes, serf=True) as fleet, fleet.open_client() as client:
            for number in range(wakes + 1):
                with trio.fail_after(JOB_DEADLINE):
                    while True:
                        if not any([node.attached async for node in client.list_nodes()]):
                            break
                        await trio.sleep(GONE_POLL)
                one = await one_job(client, "true")
                if number:  # the first warms up
                    took.append(one)
    return [figure("job `true`, 3 on-demand agents over serf: start to complete", took, bar=Bar(at=1.2))]


async def main(options: argparse.Namespace) -> int:
    """Measures until done, or told to stop: then everything is ended before this returns, with 130."""
    done = False
    async with trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:

            async def stop() -> None:
                async for _ in signals:
                    nursery.cancel_scope.cancel(reason="told to stop")

            nursery.start_soon(stop)
            await measure(options)
            done = True
            nursery.cancel_scope.cancel(reason="all is measured")
    return 0 if done else 130


async def measure(options: argparse.Namespace) -> None:
    """Measures, prints, and writes JSON if asked to."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    facts = machine()
    print(head(facts))
    print("real processes on loopback, TLS 1.3, fsync on")
    figures = await measure_attached(options.jobs, options.seconds)
    if find_serf() is None:
        print("serf is not installed: on demand was not measured")
    else:
        figures += await measure_on_demand(options.wakes)
    print("\n".join(table(figures)))
    if options.json is not None:
        document = {"machine": facts, "figures": [each.document() for each in figures]}
        options.json.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=50, help="attached jobs (default: %(default)s)")
    parser.add_argument("--wakes", type=int, default=15, help="on-demand jobs (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=8.0, help="of output (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result there")
    sys.exit(trio.run(main, parser.parse_args()))
