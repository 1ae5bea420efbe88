"""A controller's insides and fake agents on virtual time, and the promise that nothing of them is left over."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

from lab.failpoint_store import FailpointStore
from lab.fake_agents import FakeAgent, Script
from lab.nursery_rig import NurseryRig, open_rig
from shovey_trio.core.jobs.model import LinkMode, Run
from shovey_trio.core.jobs.states import RunState
from shovey_trio.nursery.clock import TrioClock
from shovey_trio.nursery.ports import Doorbell, OrderSigner
from shovey_trio.nursery.settings import Bounds, Timing

# Virtual seconds: whatever is not over by then hangs.
HANGS = 3_000.0


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[Any]]:
    """What was logged: kept, because rendering the tracebacks of injected bugs takes longer than the tests."""
    with capture_logs() as entries:
        yield entries


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """A rig with its agents."""

    rig: NurseryRig
    agents: Mapping[str, FakeAgent]
    store: FailpointStore
    clock: TrioClock

    async def until(self, job_id: str, node: str, state: RunState) -> Run:
        """The run, as its task sees it, once it is in this state."""
        await until(lambda: self.rig.live_run(job_id, node).state is state)
        return self.rig.live_run(job_id, node)


async def until(condition: Callable[[], bool]) -> None:
    """Waits, on virtual time."""
    while not condition():  # noqa: ASYNC110 - the condition is anything, and the time is virtual
        await trio.sleep(0.01)


@asynccontextmanager
async def open_agents(
    names: Iterable[str],
    *,
    script: Script | None = None,
    mode: LinkMode = LinkMode.ATTACHED,
) -> AsyncIterator[dict[str, FakeAgent]]:
    """Fake agents that live for the block, not connected."""
    clock = TrioClock()
    agents = {name: FakeAgent(name, clock=clock, script=script, mode=mode) for name in names}
    with trio.fail_after(HANGS):
        async with trio.open_nursery() as nursery:
            for agent in agents.values():
                nursery.start_soon(agent.serve)  # noqa: ASYNC113 - a wish to connect waits for it
            yield agents
            nursery.cancel_scope.cancel(reason="test over")


@asynccontextmanager
async def open_fleet(
    *names: str,
    script: Script | None = None,
    store: FailpointStore | None = None,
    mode: LinkMode = LinkMode.ATTACHED,
    connected: bool = True,
    doorbell: Doorbell | None = None,
    signer: OrderSigner | None = None,
    timing: Timing | None = None,
    bounds: Bounds | None = None,
) -> AsyncIterator[Fleet]:
    """Registered nodes with agents; at the end nothing may be left of the jobs that have ended."""
    store = store or FailpointStore()
    clock = TrioClock()
    async with (
        open_agents(names, script=script, mode=mode) as agents,
        open_rig(store, clock=clock, doorbell=doorbell, signer=signer, timing=timing, bounds=bounds) as rig,
    ):
        await rig.register(names, mode=mode)
        for agent in agents.values():
            agent.inbox = rig.inbox
            if connected:
                agent.connect()
        yield Fleet(rig=rig, agents=agents, store=store, clock=clock)
        assert_nothing_left(rig)


def assert_nothing_left(rig: NurseryRig) -> None:
    """Ended jobs leave no handle, no waiter and no wish for a ring behind."""
    if len(rig.supervisor):
        return
    assert rig.links.awaited == 0
    for node in rig.registry.all():
        assert rig.supervisor.runs_of_node(node.organization, node.name) == []
