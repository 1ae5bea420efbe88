"""A serf cluster of emulated nodes around one real server: serf's RPC on a port, its size limit, its gossip's rate."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import trio

from lab.fake_serf import AskedQuery, FakeSerfCluster
from lab.gossip import STEP, Gossip, Rumour

_HOST: Final = "127.0.0.1"


class EmulatedSerf(FakeSerfCluster):
    """The cluster; made by ``open_emulated_serf``.

    Queries of the server's that are called ``gossiped`` travel as gossip would carry them (``gossip``), and those above
    the agents' limit are refused. All others are there at once: a thousand nodes' heartbeats would take all that gossip
    can carry, to every server's loss.

    Attributes:
        rpc_port: of the server's agent.
        delivered: what takes such a query's payload for a node; to be replaced.
        lost: how many copies of them died out in gossip before their node had them.
    """

    def __init__(self, server: str, nodes: Sequence[str], *, gossiped: str) -> None:
        super().__init__(server, *nodes)
        self._gossiped = gossiped
        self.rpc_port = 0
        self.delivered: Callable[[str, bytes], None] = lambda _node, _payload: None
        self.lost = 0
        self._gossip = Gossip(len(nodes) + 1, random.Random(len(nodes)))
        self._under_way: dict[Rumour, tuple[AskedQuery, bytes]] = {}
        self._work = trio.Event()

    def deliver(self, asked: AskedQuery, *, name: str, payload: bytes, filter_nodes: tuple[str, ...]) -> None:
        if name != self._gossiped:
            super().deliver(asked, name=name, payload=payload, filter_nodes=filter_nodes)
            return
        targets = [node for node in filter_nodes or self.members if node in self.members]
        self._under_way[self._gossip.add(targets, size=self.queries[-1].size)] = asked, payload
        self._work.set()

    async def run_gossip(self) -> None:
        """Lets time pass for what is under way; until cancelled."""
        while True:
            if not self._under_way:
                self._work = trio.Event()
                await self._work.wait()
            at = trio.current_time()
            while self._under_way:
                at += STEP
                await trio.sleep_until(at)
                self._step()

    def _step(self) -> None:
        heard = self._gossip.step()
        self.query_queue = self._gossip.depth
        for rumour, nodes in heard:
            asked, payload = self._under_way[rumour]
            for node in nodes:
                if asked.acks:
                    asked.record("ack", node, None)
                self.delivered(node, payload)
        for rumour in [known for known in self._under_way if not self._gossip.carries(known)]:
            self.lost += len(rumour.waiting)
            del self._under_way[rumour]


@asynccontextmanager
async def open_emulated_serf(server: str, nodes: Sequence[str], *, gossiped: str = "") -> AsyncIterator[EmulatedSerf]:
    """A cluster whose members are all alive, for the block.

    Args:
        server: serf name of the server's agent.
        nodes: serf names of the nodes.
        gossiped: the name of the queries that take their time; empty for none.
    """
    cluster = EmulatedSerf(server, nodes, gossiped=gossiped)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, cluster.agent(server).serve, 0, host=_HOST))
        cluster.rpc_port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(cluster.run_gossip)
        yield cluster
        nursery.cancel_scope.cancel(reason="the emulated cluster is closed")
