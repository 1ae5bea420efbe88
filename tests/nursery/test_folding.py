"""What comes together is written together, and loses nothing by it."""

from __future__ import annotations

import trio

from lab.failpoint_store import FailpointStore
from lab.fake_agents import Script
from shovey_trio.core.jobs.events import CancelAsked, NodeAccepted, NodeReported, NodeStarted, ReportOutcome, RunReport
from shovey_trio.core.jobs.states import RunState
from shovey_trio.nursery.ports import SendOrder, SendReportDurable
from shovey_trio.store.contract import StoredRun
from tests.nursery.conftest import open_fleet, until

# Takes the order and never says a word.
SILENT = Script(accept_after=10_000)


def _report(run_id: str) -> NodeReported:
    return NodeReported(report=RunReport(run_id=run_id, outcome=ReportOutcome.EXITED, exit_code=0))


async def test_a_run_told_at_once_is_one_write_in_which_every_state_is_an_event(autojump_clock: object) -> None:
    store = FailpointStore()
    async with open_fleet("n", script=SILENT, store=store) as fleet:
        job = await fleet.rig.start("n")
        run = await fleet.until(job.id, "n", RunState.DISPATCHED)
        live = fleet.rig.supervisor.run(run.id)
        assert live is not None
        store.written.clear()
        now = fleet.rig.services.clock.now()
        for event in (NodeAccepted(at=now + 1), NodeStarted(at=now + 2), _report(run.id)):
            assert await live.post(event)
        await fleet.rig.ended(job.id)
        events = await store.read_events(job.id, after_seq=0, limit=100, include_output=False)
        states = [event.run.state for event in events if isinstance(event, StoredRun)]
        ended = await fleet.rig.run(job.id, "n")
        await until(lambda: SendReportDurable(run_id=run.id) in fleet.agents["n"].messages)
    assert store.written.count(("write_run", "n")) == 1
    assert states == [
        RunState.PENDING,
        RunState.DISPATCHED,
        RunState.ACCEPTED,
        RunState.RUNNING,
        RunState.SUCCEEDED,
    ]
    assert (ended.accepted_at, ended.started_at) == (now + 1, now + 2)


async def test_messages_that_follow_each_other_closely_are_one_write(autojump_clock: object) -> None:
    store = FailpointStore()
    async with open_fleet("n", script=SILENT, store=store) as fleet:
        job = await fleet.rig.start("n")
        run = await fleet.until(job.id, "n", RunState.DISPATCHED)
        live = fleet.rig.supervisor.run(run.id)
        assert live is not None
        store.written.clear()
        now = fleet.rig.services.clock.now()
        for event in (NodeAccepted(at=now), NodeStarted(at=now), _report(run.id)):
            assert await live.post(event)
            await trio.sleep(0.005)
        await fleet.rig.ended(job.id)
    assert store.written.count(("write_run", "n")) == 1


async def test_the_first_words_are_written_soon_though_nothing_follows(autojump_clock: object) -> None:
    async with open_fleet("n", script=SILENT) as fleet:
        job = await fleet.rig.start("n")
        run = await fleet.until(job.id, "n", RunState.DISPATCHED)
        live = fleet.rig.supervisor.run(run.id)
        assert live is not None
        began = trio.current_time()
        assert await live.post(NodeStarted(at=fleet.rig.services.clock.now()))
        await fleet.until(job.id, "n", RunState.RUNNING)
        assert trio.current_time() - began < 1


async def test_nothing_is_confirmed_before_the_one_write_is_durable(autojump_clock: object) -> None:
    store = FailpointStore()
    let_go = trio.Event()

    async def hold(write: str, subject: str) -> None:
        if write == "write_run":
            await let_go.wait()

    async with open_fleet("n", script=SILENT, store=store) as fleet:
        job = await fleet.rig.start("n")
        run = await fleet.until(job.id, "n", RunState.DISPATCHED)
        live = fleet.rig.supervisor.run(run.id)
        assert live is not None
        store.before = hold
        for event in (NodeStarted(at=0.0), _report(run.id)):
            assert await live.post(event)
        with trio.move_on_after(60):
            await trio.sleep_forever()
        assert SendReportDurable(run_id=run.id) not in fleet.agents["n"].messages
        let_go.set()
        await until(lambda: SendReportDurable(run_id=run.id) in fleet.agents["n"].messages)


async def test_a_cancel_that_comes_behind_the_end_is_told_that_it_came_too_late(autojump_clock: object) -> None:
    async with open_fleet("n", script=SILENT) as fleet:
        job = await fleet.rig.start("n")
        run = await fleet.until(job.id, "n", RunState.DISPATCHED)
        live = fleet.rig.supervisor.run(run.id)
        assert live is not None
        orders = sum(isinstance(message, SendOrder) for message in fleet.agents["n"].messages)
        assert await live.post(_report(run.id))
        asked = await live.post_durably(CancelAsked(by="user/ops"))
        await fleet.rig.ended(job.id)
        ended = await fleet.rig.run(job.id, "n")
        assert not asked
        assert (ended.state, ended.cancel_reason) == (RunState.SUCCEEDED, "")
        assert sum(isinstance(message, SendOrder) for message in fleet.agents["n"].messages) == orders
