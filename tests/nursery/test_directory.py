"""Where a job is: what is not live here has not ended for that."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from lab.failpoint_store import FailpointStore
from lab.nursery_rig import OPERATOR, ORGANIZATION, NurseryRig, open_rig
from shovey_trio.core import ids
from shovey_trio.core.errors import JobElsewhere
from shovey_trio.core.jobs.model import Job, Run
from shovey_trio.core.jobs.states import JobState, RunState
from shovey_trio.nursery.clock import TrioClock
from shovey_trio.nursery.directory import Elsewhere, Ended, Here, JobDirectory


async def _stored_only(rig: NurseryRig) -> Job:
    """A job that is durable and unfinished, and that nobody here supervises: as another controller's."""
    now = rig.services.clock.now()
    job = Job(
        id=ids.job_id(now, bytes(10)),
        organization=ORGANIZATION,
        command="work",
        quorum="100%",
        run_timeout=60.0,
        kill_grace=1.0,
        created_by="user/ops",
        created_at=now,
        updated_at=now,
        state=JobState.RUNNING,
        run_total=2,
    )
    run = Run(
        id=ids.run_id(job.id, "a"),
        job_id=job.id,
        organization=ORGANIZATION,
        node="a",
        state=RunState.RUNNING,
        created_at=now,
        updated_at=now,
        released_at=now,
        accepted_at=now,
        attempts=1,
        nonce=bytes(16),
    )
    over = replace(run, id=ids.run_id(job.id, "b"), node="b", state=RunState.SUCCEEDED, finished_at=now)
    await rig.services.store.create_job(job, [run, over], None)
    return job


async def test_a_job_is_here_elsewhere_or_ended(autojump_clock: object) -> None:
    async with open_rig(FailpointStore(), clock=TrioClock()) as rig:
        directory = JobDirectory(rig.services.store, rig.supervisor)
        await rig.register(["a"])
        here, elsewhere = await rig.start("a"), await _stored_only(rig)
        assert isinstance(await directory.find(ORGANIZATION, here.id), Here)
        assert await directory.find(ORGANIZATION, elsewhere.id) == Elsewhere(elsewhere)
        assert await directory.find("another", here.id) is None
        assert await directory.find(ORGANIZATION, "no-such-job") is None
        ended = await rig.ended(here.id)
        await trio.testing.wait_all_tasks_blocked()
        assert await directory.find(ORGANIZATION, here.id) == Ended(ended)


async def test_cancel_of_a_job_that_lives_elsewhere_is_durable_and_not_called_finished(autojump_clock: object) -> None:
    store = FailpointStore()
    async with open_rig(store, clock=TrioClock()) as rig:
        job = await _stored_only(rig)
        _, counts = await rig.jobs.get(OPERATOR, job.id)
        assert counts == {RunState.RUNNING: 1, RunState.SUCCEEDED: 1}
        cancelled = await rig.jobs.cancel(OPERATOR, job.id, [])
        assert (cancelled.cancelling, cancelled.already_finished) == (("a",), ("b",))
        kept = await store.get_job(ORGANIZATION, job.id)
        assert kept is not None
        assert kept.cancel_requested
        assert not kept.is_terminal
    async with open_rig(store, clock=TrioClock()) as rig:
        assert rig.live_run(job.id, "a").cancelling or not rig.live_run(job.id, "a").is_terminal
        await trio.sleep(1)
        assert rig.live_run(job.id, "a").cancelling


async def test_cancel_of_some_runs_elsewhere_is_refused_by_name(autojump_clock: object) -> None:
    async with open_rig(FailpointStore(), clock=TrioClock()) as rig:
        job = await _stored_only(rig)
        with pytest.raises(JobElsewhere):
            await rig.jobs.cancel(OPERATOR, job.id, ["a"])


async def test_a_job_that_is_taken_up_has_the_epoch_of_who_took_it_up(autojump_clock: object) -> None:
    store, clock = FailpointStore(), TrioClock()
    async with open_rig(store, clock=clock) as rig:
        await rig.register(["a"])
        job = await rig.start("a")
        assert job.epoch == rig.services.epoch
        rig.crash()
    async with open_rig(store, clock=clock) as rig:
        live = rig.supervisor.job(job.id)
        assert live is not None
        assert live.job.epoch == rig.services.epoch > job.epoch
