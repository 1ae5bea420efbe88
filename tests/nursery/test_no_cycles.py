"""What ends is freed by its reference counts: the daemon seldom looks for cycles (``controller.garbage``)."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from lab.fake_agents import Script
from shovey_trio.core.jobs.states import RunState
from shovey_trio.nursery.handles import JobHandle, RunHandle
from tests.nursery.conftest import open_fleet, until


@pytest.fixture(autouse=True)
def _nothing_is_looked_for() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def left(job_id: str) -> list[object]:
    return [
        found
        for found in gc.get_objects()
        if (type(found) is JobHandle and found.job.id == job_id)
        or (type(found) is RunHandle and found.run.job_id == job_id)
    ]


async def test_a_job_that_has_ended_leaves_nothing(autojump_clock: object) -> None:
    async with open_fleet("a", "b") as fleet:
        job = await fleet.rig.start("a", "b")
        await fleet.rig.ended(job.id)
        await until(lambda: not len(fleet.rig.supervisor))
        assert left(job.id) == []


async def test_a_job_that_was_cancelled_leaves_nothing(autojump_clock: object) -> None:
    async with open_fleet("a", "b", script=Script(run_for=10_000)) as fleet:
        job = await fleet.rig.start("a", "b")
        await fleet.until(job.id, "a", RunState.RUNNING)
        await fleet.until(job.id, "b", RunState.RUNNING)
        handle = fleet.rig.supervisor.job(job.id)
        assert handle is not None
        await fleet.rig.supervisor.cancel(handle, ["a", "b"], by="user/ops", whole_job=True)
        del handle
        await fleet.rig.ended(job.id)
        await until(lambda: not len(fleet.rig.supervisor))
        assert left(job.id) == []
