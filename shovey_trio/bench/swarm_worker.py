"""One process full of simulated agents: ``python -m shovey_trio.bench.swarm_worker``.

Its master writes one JSON object a line to its standard input and reads one answer a line from its standard output
(``swarm`` has the other end). It ends when its input does, so it cannot outlive its master.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import time
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

import structlog
import trio

from shovey_trio.bench.simulated_agent import Credentials, SimulatedAgent, Tally, enroll
from shovey_trio.bench.simulated_run import Behaviour, Kind
from shovey_trio.rpc.bridge import ClientTls, open_bridge, open_channel

_READ = 256 * 1024
_POLL = 0.005
_ENROLLING = 16
# New objects until a collection of the young, collections of those until one of the middle, and so on.
_COLLECTIONS = (100_000, 50, 1_000)


class Worker:
    """The agents of this process."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._tally = Tally()
        self._behaviours: dict[str, Behaviour] = {}
        self._credentials: list[Credentials] = []
        self._attached = 0
        self._serving = 0  # agents that have not closed their connection yet
        self._scopes: list[trio.CancelScope] = []

    async def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Does what is asked."""
        match request.pop("do"):
            case "enroll":
                return await self._enroll(**request)
            case "behave":
                self._behaviours |= {
                    name: Behaviour(**{**each, "kind": Kind(each["kind"])})
                    for name, each in request["commands"].items()
                }
                return {}
            case "attach":
                return await self._attach(int(request["agents"]))
            case "detach":
                return await self._detach()
            case other:
                assert other == "tally"
                return asdict(self._tally)

    async def _enroll(self, *, address: str, ca: str, organization: str, tokens: dict[str, str]) -> dict[str, Any]:
        limiter = trio.CapacityLimiter(_ENROLLING)

        async def one(node: str, token: str) -> None:
            async with limiter:
                found = await enroll(channel, organization=organization, node=node, token=token)
            self._credentials.append(found)

        async with open_channel(address, ClientTls(ca=ca.encode())) as channel, trio.open_nursery() as nursery:
            for node, token in tokens.items():
                nursery.start_soon(one, node, token)
        return {"enrolled": len(self._credentials)}

    async def _attach(self, agents: int) -> dict[str, Any]:
        """Has the first ``agents`` attached, all at once; answers when they are."""
        self._tally.dropped = 0
        began = time.perf_counter()
        for credentials in self._credentials[self._attached : agents]:
            agent = SimulatedAgent(credentials, self._behaviours, self._tally)
            scope = trio.CancelScope()
            self._scopes.append(scope)
            self._nursery.start_soon(self._serve, agent, scope)
        self._attached = max(self._attached, agents)
        while self._tally.attached < self._attached:  # noqa: ASYNC110 - an event per agent would be part of the load
            await trio.sleep(_POLL)
        took = time.perf_counter() - began
        # What lives as long as the agents need not be looked at by every collection, and collections are to be few:
        # with thousands of agents they would take as much of the machine as their protocol.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_COLLECTIONS)
        return {"seconds": took, "dropped": self._tally.dropped}

    async def _detach(self) -> dict[str, Any]:
        for scope in self._scopes:
            scope.cancel(reason="all agents leave")
        self._scopes.clear()
        while self._serving:  # noqa: ASYNC110 - as above
            await trio.sleep(_POLL)
        self._attached = 0
        return {}

    async def _serve(self, agent: SimulatedAgent, scope: trio.CancelScope) -> None:
        self._serving += 1
        try:
            with scope:
                await agent.serve()
        finally:
            self._serving -= 1


async def main() -> None:
    """Answers until the input ends."""
    async with open_bridge(), trio.open_nursery() as nursery:
        worker = Worker(nursery)
        output = trio.lowlevel.FdStream(os.dup(1))
        async for line in _lines():
            answer = await worker.answer(json.loads(line))
            await output.send_all(json.dumps(answer).encode() + b"\n")
        nursery.cancel_scope.cancel(reason="the master has gone")


async def _lines() -> AsyncIterator[bytes]:
    stream = trio.lowlevel.FdStream(os.dup(0))
    buffer = bytearray()
    while data := await stream.receive_some(_READ):
        buffer += data
        while (end := buffer.find(b"\n")) >= 0:
            yield bytes(buffer[:end])
            del buffer[: end + 1]


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    trio.run(main)
