"""A failure stays where it happened: in one run, in one job – or, if the shared store is beyond use, nowhere."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio

from lab.failpoint_store import FailpointStore
from lab.fake_agents import Script
from lab.nursery_rig import OPERATOR, make_signer
from shovey_trio.core.errors import RequestIdReused, StoreCorrupt, StoreUnavailable
from shovey_trio.core.jobs.model import Presence, StreamName
from shovey_trio.core.jobs.states import JobState, RunState
from shovey_trio.core.trust.orders import Order, OrderKind, SignedOrder
from shovey_trio.nursery.ports import SendForget, SendReportDurable
from tests.nursery.conftest import open_fleet, until

WRITES = ("create_job", "write_run", "append_output", "write_job", "write_node")


class _Bug(Exception):
    """What nobody has thought of."""


class _BadSigner:
    """Fails for one node and kind of order."""

    def __init__(self, node: str, kind: OrderKind = OrderKind.START) -> None:
        self._node, self._kind, self._signer = node, kind, make_signer()

    def sign(self, order: Order) -> SignedOrder:
        if (order.node, order.kind) == (self._node, self._kind):
            raise _Bug
        return self._signer.sign(order)


def _fail_at(write: str, subject: str, error: Exception, *, times: int = 1) -> Callable[[str, str], Awaitable[None]]:
    left = times

    async def fail(at: str, of: str) -> None:
        nonlocal left
        if (at, of) == (write, subject) and left:
            left -= 1
            raise error

    return fail


async def test_a_bug_in_one_runs_dispatch_crashes_that_run_alone(autojump_clock: object) -> None:
    async with open_fleet("a", "b", "c", signer=_BadSigner("b")) as fleet:
        job = await fleet.rig.start("a", "b", "c")
        ended = await fleet.rig.ended(job.id)
        assert ended.run_counts == {RunState.SUCCEEDED: 2, RunState.CRASHED: 1}
        run = await fleet.rig.run(job.id, "b")
        assert (run.state, run.cause) == (RunState.CRASHED, "internal_error")
        assert run.detail == "_Bug in the controller; see its log"
        assert ended.state is JobState.COMPLETE


async def test_a_bug_in_one_runs_cancel_crashes_that_run_alone_and_voids_it_on_its_node(
    autojump_clock: object,
) -> None:
    script = Script(run_for=None)
    async with open_fleet("a", "b", script=script, signer=_BadSigner("b", OrderKind.CANCEL)) as fleet:
        job = await fleet.rig.start("a", "b")
        run = await fleet.until(job.id, "b", RunState.RUNNING)
        await fleet.until(job.id, "a", RunState.RUNNING)
        await fleet.rig.jobs.cancel(OPERATOR, job.id, [])
        ended = await fleet.rig.ended(job.id)
        assert ended.run_counts == {RunState.CANCELLED: 1, RunState.CRASHED: 1}
        await until(lambda: SendForget(run_id=run.id) in fleet.agents["b"].messages)
        await until(lambda: not fleet.agents["b"].spool)


@pytest.mark.parametrize("write", ["write_run", "append_output"])
async def test_a_bug_in_one_runs_writes_crashes_that_run_alone(write: str, autojump_clock: object) -> None:
    store = FailpointStore()
    store.before = _fail_at(write, "b", _Bug())
    script = Script(output=((StreamName.STDOUT, b"x"),), run_for=1)
    async with open_fleet("a", "b", script=script, store=store) as fleet:
        job = await fleet.rig.start("a", "b")
        ended = await fleet.rig.ended(job.id)
        assert ended.run_counts == {RunState.SUCCEEDED: 1, RunState.CRASHED: 1}
        assert (await fleet.rig.run(job.id, "b")).cause == "internal_error"
        await until(lambda: not fleet.agents["b"].spool)
        late = (await fleet.rig.run(job.id, "b")).late_report
        assert late is not None, "what the node says of it is kept all the same"


async def test_a_bug_in_one_job_crashes_that_job_alone(autojump_clock: object) -> None:
    store = FailpointStore()
    async with open_fleet("a", "b", script=Script(run_for=50), store=store) as fleet:
        sick, well = await fleet.rig.start("a", "b"), await fleet.rig.start("a")
        # Twice: the run's own end cannot be written then, and its job has to bear it.
        store.before = _fail_at("write_run", "b", _Bug(), times=2)
        ended = await fleet.rig.ended(sick.id)
        assert (ended.state, ended.cause) == (JobState.CRASHED, "internal_error")
        assert ended.run_counts == {RunState.CRASHED: 2}
        assert (await fleet.rig.ended(well.id)).state is JobState.COMPLETE
        await until(lambda: not fleet.agents["a"].spool)
        assert (await fleet.rig.run(sick.id, "a")).late_report is not None


async def test_a_job_whose_end_could_not_be_written_at_first_is_written_again(autojump_clock: object) -> None:
    store = FailpointStore()
    async with open_fleet("a", store=store) as fleet:
        job, other = await fleet.rig.start("a"), await fleet.rig.start("a")
        store.before = _fail_at("write_job", job.id, _Bug())
        assert (await fleet.rig.ended(job.id)).state is JobState.COMPLETE
        assert (await fleet.rig.ended(other.id)).state is JobState.COMPLETE


async def test_a_job_whose_end_cannot_be_written_at_all_harms_no_other_and_is_left_to_the_next_start(
    autojump_clock: object,
) -> None:
    store = FailpointStore()
    async with open_fleet("a", store=store) as fleet:
        job, other = await fleet.rig.start("a"), await fleet.rig.start("a")
        store.before = _fail_at("write_job", job.id, _Bug(), times=2)
        assert (await fleet.rig.ended(job.id)).state is JobState.RUNNING
        assert (await fleet.rig.ended(other.id)).state is JobState.COMPLETE
    async with open_fleet("a", store=store) as fleet:
        assert (await fleet.rig.ended(job.id)).state is JobState.COMPLETE


@pytest.mark.parametrize("error", [_Bug(), RequestIdReused("used", job_id="x"), StoreUnavailable("full")])
async def test_a_job_that_cannot_be_created_is_its_callers_problem_alone(
    error: Exception, autojump_clock: object
) -> None:
    store = FailpointStore()
    async with open_fleet("a", store=store) as fleet:

        async def fail(write: str, subject: str) -> None:
            if write == "create_job":
                raise error

        store.before = fail
        with pytest.raises(type(error)):
            await fleet.rig.start("a")
        store.before = FailpointStore().before
        assert (await fleet.rig.ended((await fleet.rig.start("a")).id)).state is JobState.COMPLETE


@pytest.mark.parametrize("write", WRITES)
async def test_a_corrupt_store_ends_the_controller(write: str, autojump_clock: object) -> None:
    store = FailpointStore()

    async def fail(at: str, subject: str) -> None:
        if at == write:
            raise StoreCorrupt("the file is damaged")

    async def live() -> None:
        async with open_fleet("a", script=Script(output=((StreamName.STDOUT, b"x"),)), store=store) as fleet:
            await until(lambda: fleet.agents["a"].link is not None)
            store.before = fail
            if write == "write_node":
                fleet.agents["a"].disconnect()
                await trio.sleep_forever()
            try:
                job = await fleet.rig.start("a")
            except StoreCorrupt:
                assert write == "create_job"
                await trio.sleep_forever()
            await fleet.rig.ended(job.id)
            await trio.sleep_forever()

    # Not RaisesGroup: how many tasks stumbled over it, and how deep, is of no interest.
    with pytest.raises(BaseExceptionGroup) as caught:  # noqa: ASYNC401
        await live()
    assert caught.value.split(StoreCorrupt)[1] is None, "nothing but that comes out"


@pytest.mark.parametrize("write", WRITES[1:])
async def test_while_the_store_is_away_nothing_is_lost_or_acknowledged_and_then_it_goes_on_by_itself(
    write: str, autojump_clock: object
) -> None:
    store = FailpointStore()
    script = Script(output=((StreamName.STDOUT, b"abc"), (StreamName.STDERR, b"def")), run_for=1)
    async with open_fleet("a", "b", script=script, store=store) as fleet:
        away = True

        async def fail(at: str, subject: str) -> None:
            if away and at == write:
                raise StoreUnavailable("the disk is full")

        job = await fleet.rig.start("a", "b")
        if write == "write_node":
            await fleet.until(job.id, "b", RunState.RUNNING)
            fleet.agents["b"].disconnect()
        store.before = fail
        await trio.sleep(300)
        away = False
        store.written.clear()
        if write == "write_node":
            assert fleet.rig.registry.all()[1].presence is Presence.DOWN
            await until(lambda: ("write_node", "b") in store.written)
            history, _ = await store.list_node_statuses("default", "b", limit=1, after="")
            assert history[0].reason == "stream_lost"
            fleet.agents["b"].connect()
        assert (await fleet.rig.ended(job.id)).run_counts == {RunState.SUCCEEDED: 2}
        run = await fleet.rig.run(job.id, "b")
        assert b"".join(chunk.data for chunk in await store.read_output(run.id, stream=None, offset=0, limit=99)) == (
            b"abcdef"
        )
        assert run.finished_at == pytest.approx(job.created_at + 1, abs=0.1), "as the node said"


async def test_a_report_is_confirmed_only_once_the_run_is_stored(autojump_clock: object) -> None:
    store = FailpointStore()
    script = Script(output=((StreamName.STDOUT, b"x" * 10),))
    async with open_fleet("a", script=script, store=store) as fleet:
        confirmed: list[RunState] = []
        agent = fleet.agents["a"]

        def note(message: object) -> None:
            if isinstance(message, SendReportDurable):
                stored = store._find("default", job.id)
                assert stored is not None
                confirmed.append(stored.runs["a"].state)
                assert sum(len(chunk.data) for chunk in stored.output["a"]) == 10

        agent.heard = note

        async def slow(write: str, subject: str) -> None:
            if write != "create_job":
                await trio.sleep(3)

        store.before = slow
        job = await fleet.rig.start("a")
        await fleet.rig.ended(job.id)
        await until(lambda: bool(confirmed))
        assert confirmed == [RunState.SUCCEEDED]


async def test_starting_answers_only_once_the_job_is_stored(autojump_clock: object) -> None:
    store = FailpointStore()
    async with open_fleet("a", store=store) as fleet:

        async def slow(write: str, subject: str) -> None:
            await trio.sleep(3)

        store.before = slow
        began = trio.current_time()
        job = await fleet.rig.start("a")
        assert trio.current_time() == pytest.approx(began + 3)
        assert await store.get_job("default", job.id) is not None
        await fleet.rig.ended(job.id)


@pytest.mark.parametrize("steps", range(8))
async def test_a_caller_who_leaves_in_the_middle_of_a_start_leaves_a_job_that_is_supervised(
    steps: int, autojump_clock: object
) -> None:
    store, begun = FailpointStore(), []
    async with open_fleet("a", store=store) as fleet:

        async def note(write: str, subject: str) -> None:
            begun.append(write)

        store.before = note
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fleet.rig.start, "a")
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                scope.cancel(reason="the caller is gone")
        await trio.sleep(1)
        assert {stored.job.state for stored in fleet.store._jobs.values()} <= {JobState.COMPLETE}
        # Who leaves while the grants are being read has begun nothing.
        assert "create_job" in begun or steps < 4
        assert len(fleet.store._jobs) == begun.count("create_job"), "what was begun is seen through"


@pytest.mark.parametrize("steps", range(12))
async def test_a_caller_who_leaves_in_the_middle_of_a_cancel_leaves_no_half_cancelled_job(
    steps: int, autojump_clock: object
) -> None:
    names = [f"n{i}" for i in range(5)]
    async with open_fleet(*names, script=Script(run_for=None)) as fleet:
        job = await fleet.rig.start(*names, run_timeout=1000)
        for name in names:
            await fleet.until(job.id, name, RunState.RUNNING)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fleet.rig.jobs.cancel, OPERATOR, job.id, [])
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                scope.cancel(reason="the caller is gone")
        await trio.sleep(30)
        states = {(await fleet.rig.run(job.id, name)).state for name in names}
        assert states in ({RunState.CANCELLED}, {RunState.RUNNING})
        assert (await fleet.rig.jobs.get(OPERATOR, job.id))[0].cancel_requested is (states == {RunState.CANCELLED})


async def test_no_task_outlives_the_supervisor(autojump_clock: object) -> None:
    before = trio.lowlevel.current_statistics().tasks_living
    async with open_fleet("a", "b", script=Script(run_for=None)) as fleet:
        job = await fleet.rig.start("a", "b")
        await fleet.until(job.id, "b", RunState.RUNNING)
    assert trio.lowlevel.current_statistics().tasks_living == before
