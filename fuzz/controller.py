"""A controller's insides on a real store, for targets that go all the way through: one job that has ended is there.

It lives in a thread with a loop of its own, and is made anew from time to time, because what was accepted stays in it.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

import trio

from lab.fake_agents import FakeAgent, Script
from lab.fake_doorbell import FakeDoorbell
from lab.nursery_rig import NurseryRig, open_rig
from shovey_trio.application.nodes import Nodes
from shovey_trio.core.errors import first_leaf
from shovey_trio.core.jobs.model import Job, StreamName
from shovey_trio.nursery.clock import SteadyClock
from shovey_trio.store.opening import open_store

F = TypeVar("F")

# Inputs that one store takes: what they leave behind stays small.
_RENEWED_AFTER: Final = 5_000
# More than one page of it, and no UTF-8 throughout.
_OUTPUT: Final = b"gr\xc3\xbc\xc3\x9fe \xff\n" * 400
_UP_WITHIN: Final = 60.0
#: Nodes that are registered; the first has an agent.
NODES: Final = ("web-1", "web-2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Insides:
    """What a request meets."""

    rig: NurseryRig
    nodes: Nodes
    ended: Job


class KeptController(Generic[F]):
    """Runs asynchronous functions in the controller's loop, one after the other.

    Args:
        open_front: opens what stands before the insides, and is handed to each function.
    """

    def __init__(self, open_front: Callable[[Insides], AbstractAsyncContextManager[F]]) -> None:
        self._open_front = open_front
        self._front: F | None = None
        self._calls = 0
        self._token: trio.lowlevel.TrioToken | None = None
        self._insides: Insides | None = None
        self._done = trio.Event()

    def call(self, work: Callable[[Insides, F], Awaitable[object]]) -> None:
        """Runs ``work``; what it raises, of a group the first, is raised here."""
        if self._token is None or self._calls >= _RENEWED_AFTER:
            self._renew()
        self._calls += 1
        assert self._token is not None
        assert self._insides is not None
        assert self._front is not None
        try:
            trio.from_thread.run(work, self._insides, self._front, trio_token=self._token)
        except BaseExceptionGroup as group:
            raise first_leaf(group) from group

    def _renew(self) -> None:
        if self._token is not None:
            trio.from_thread.run_sync(self._done.set, trio_token=self._token)
        self._calls, self._done, up = 0, trio.Event(), threading.Event()
        threading.Thread(target=trio.run, args=(self._keep, up, self._done), daemon=True).start()
        assert up.wait(_UP_WITHIN), "the controller did not come up"

    async def _keep(self, up: threading.Event, done: trio.Event) -> None:
        clock = SteadyClock()
        with tempfile.TemporaryDirectory(prefix="fuzz-store-") as directory:
            async with open_store(Path(directory) / "store.sqlite") as store, open_rig(store, clock=clock) as rig:
                await rig.register(NODES)
                agent = FakeAgent(NODES[0], clock=clock, script=Script(output=((StreamName.STDOUT, _OUTPUT),)))
                rig.nursery.start_soon(agent.serve)
                agent.connect(rig.inbox)
                ended = await rig.ended((await rig.start(NODES[0])).id)
                doorbell = FakeDoorbell()
                nodes = Nodes(
                    store=store,
                    services=rig.services,
                    supervisor=rig.supervisor,
                    registry=rig.registry,
                    doorbell=doorbell,
                )
                self._insides = Insides(rig=rig, nodes=nodes, ended=ended)
                async with self._open_front(self._insides) as self._front:
                    self._token = trio.lowlevel.current_trio_token()
                    up.set()
                    await done.wait()
