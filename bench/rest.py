"""What a signed REST request costs, and what reading ordinary heads in one pass saves of it.

``python bench/rest.py [--requests 2000] [--rounds 5]``: one signed GET of a run, again and again on one connection, in
one process with the server. In turns, the same request is sent with a header that makes it h11's to read. The thread's
own CPU time counts; the client's share (one send, one receive) is the same in both.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import structlog
import trio

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the laboratory is not in the wheel

from lab.chef_client import make_key, public_pem
from lab.fake_agents import FakeAgent
from lab.memory_store import MemoryStore
from lab.nursery_rig import open_rig
from shovey_trio.application.nodes import Nodes
from shovey_trio.chef.callers import StoredChefCallers
from shovey_trio.config.server import ServerSettings
from shovey_trio.core.chef.principals import ChefPrincipal, ChefPrincipalKind
from shovey_trio.core.chef.signing import sign_request
from shovey_trio.core.jobs.model import Role
from shovey_trio.nursery.clock import WallClock
from shovey_trio.shovey.rest.listener import open_rest

_SETTINGS = {"rest": {"enabled": True, "listen": "127.0.0.1:0"}}


async def measure(requests: int, rounds: int) -> None:
    """Prints a line for each way."""
    key, clock, store = make_key(), WallClock(), MemoryStore()
    await store.write_chef_principals(
        [
            ChefPrincipal(
                organization="default",
                kind=ChefPrincipalKind.USER,
                name="admin",
                role=Role.ADMIN,
                public_key=public_pem(key),
                created_at=0.0,
            )
        ]
    )
    settings = ServerSettings.model_validate(_SETTINGS)
    agent = FakeAgent("web-1", clock=clock)
    async with trio.open_nursery() as nursery, open_rig(store, clock=clock) as rig:
        nursery.start_soon(agent.serve)
        await rig.register(["web-1"])
        agent.connect(rig.inbox)
        job = await rig.start("web-1")
        await rig.ended(job.id)
        nodes = Nodes(
            services=rig.services, supervisor=rig.supervisor, registry=rig.registry, doorbell=rig.engine.doorbell
        )
        callers = StoredChefCallers(store=store, clock=clock)
        async with open_rest(settings, jobs=rig.jobs, nodes=nodes, callers=callers, legacy=None, clock=clock) as server:
            assert server is not None
            path = f"/shovey/jobs/{job.id}/web-1"
            signed = sign_request(
                method="GET", path=path, body=b"", user="admin", now=time.time(), key=key, server_api_version="1"
            )
            fields = "".join(f"{name}: {value}\r\n" for name, value in signed.items())
            head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n{fields}"
            ways = {"in one pass": f"{head}\r\n".encode(), "by h11": f"{head}Connection: keep-alive\r\n\r\n".encode()}
            costs: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(rounds):
                for way, request in ways.items():
                    costs[way].append(await _cost(server.port, request, requests))
        nursery.cancel_scope.cancel(reason="measured")
    least = min(statistics.median(each) for each in costs.values())
    for way, each in costs.items():
        median = statistics.median(each)
        print(f"{way:12} {median * 1e6:8.0f} µs of CPU a request  {1 / median:8.0f}/s  {median / least:5.2f}×")


async def _cost(port: int, request: bytes, requests: int) -> float:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        began = time.thread_time()
        for _ in range(requests):
            await stream.send_all(request)
            answer = await stream.receive_some(65_536)
            assert answer.startswith(b"HTTP/1.1 200 "), answer
        return (time.thread_time() - began) / requests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    trio.run(measure, chosen.requests, chosen.rounds)


if __name__ == "__main__":
    main()
