"""``submit``: durable StartJob calls from many clients at once, each for one node that carries it out meanwhile."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

import trio

from shovey_trio.bench.daemon_meter import cost_figures
from shovey_trio.bench.figures import Bar, Figure, figure
from shovey_trio.bench.stage import Stage
from shovey_trio.rpc.client.client import ShoveyClient
from shovey_trio.v1 import job_pb2, job_service_pb2

_CLIENTS = 32
_CALLS_PER_ROUND = 8
_LIVE = (job_pb2.JOB_STATE_NEW, job_pb2.JOB_STATE_RUNNING)
_POLL = 0.05


async def measure(stage: Stage) -> Sequence[Figure]:
    """Each client, on a connection of its own, makes eight calls times ``rounds``, one after the other."""
    options = stage.options
    await stage.attach(options.agents)
    nodes = stage.swarm.names[: options.agents]
    each = _CALLS_PER_ROUND * options.rounds
    delays: list[float] = []

    async def submit(client: ShoveyClient, number: int) -> None:
        for call in range(each):
            node = nodes[(number * each + call) % len(nodes)]
            target = job_service_pb2.Target(nodes=job_service_pb2.NodeNames(names=[node]))
            began = time.perf_counter()
            await client.start_job(job_service_pb2.StartJobRequest(command="true", target=target))
            delays.append(time.perf_counter() - began)

    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(stage.fleet.open_client()) for _ in range(_CLIENTS)]
        for client in clients:  # connect
            await client.get_server_info()
        with stage.daemon.measuring() as cost:
            began = time.perf_counter()
            async with trio.open_nursery() as nursery:
                for number, client in enumerate(clients):
                    nursery.start_soon(submit, client, number)
            took = time.perf_counter() - began
            # One question for all of them: asking for each would be a part of what is measured.
            while True:
                if not await clients[0].list_jobs(states=_LIVE, page_size=1).take(1):
                    break
                await trio.sleep(_POLL)
    total = _CLIENTS * each
    return [
        figure(
            f"StartJob from {_CLIENTS} clients: rate",
            [total / took],
            unit="1/s",
            bar=Bar(at=300, stretch=800, at_least=True),
        ),
        figure(f"StartJob from {_CLIENTS} clients: call", delays, bar=Bar(at=0.1, of="p99")),
        *cost_figures(f"StartJob from {_CLIENTS} clients", cost, each="job, run included", count=total),
    ]
