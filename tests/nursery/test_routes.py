"""A kind of node that nobody here knows: it needs a route and a word, and nothing of the nursery or of core changes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from lab.failpoint_store import FailpointStore
from lab.fake_agents import FakeAgent
from lab.nursery_rig import OPERATOR, ORGANIZATION, NurseryRig, open_rig
from shovey_trio.application.job_request import StartJob
from shovey_trio.core.jobs.command_input import CommandInput
from shovey_trio.core.jobs.events import (
    CancelUnproven,
    ConfirmReport,
    EndTold,
    ForgetRun,
    NodeStarted,
    OrderSent,
    OutputOver,
)
from shovey_trio.core.jobs.model import Job, Node, Run, ToldEnd
from shovey_trio.core.jobs.run_machine import handle
from shovey_trio.core.jobs.states import RunState
from shovey_trio.core.jobs.targeting import Names
from shovey_trio.nursery.clock import TrioClock
from shovey_trio.nursery.persist import write_latest
from shovey_trio.nursery.route import RunAtWork
from tests.nursery.conftest import HANGS, open_agents, until

PIGEON = "pigeon"


class PigeonRoute:
    """Carries orders away once, and hears of their end if somebody comes back."""

    may_repeat = False
    tells_once = False
    output_patience = 7.0

    def __init__(self, *, grounded: bool = False) -> None:
        self.grounded = grounded
        self.sent: list[str] = []
        self.recalled: list[str] = []
        self.told: list[ConfirmReport | ForgetRun] = []

    def acceptance_until(self, job: Job, run: Run) -> float:
        return job.created_at + 5.0

    def unsupported(self, job: Job) -> str:
        return "a pigeon carries no input" if job.input else ""

    def way(self, node: Node) -> str | None:
        return None if self.grounded else PIGEON

    def not_asked(self, node: Node) -> str:
        return "a pigeon does not talk"

    def start_nowait(self, run: RunAtWork) -> bool:
        return False

    async def start(self, run: RunAtWork) -> None:
        if self.grounded:
            await trio.sleep_forever()
        now = run.services.clock.now()
        sent = OrderSent(route=PIGEON, agent_instance="", expires_at=now + 5)
        run.handle.run = handle(run.handle.run, sent, now).run
        await write_latest(run.handle.get_run, run.services)
        self.sent.append(run.handle.run.node)

    async def cancel(self, run: RunAtWork) -> None:
        self.recalled.append(run.handle.run.node)
        await trio.sleep(run.job.job.kill_grace)
        await run.handle.post(CancelUnproven())

    async def serve(self) -> None:
        await trio.sleep_forever()

    def tell(self, run: Run, word: ConfirmReport | ForgetRun) -> None:
        self.told.append(word)


@asynccontextmanager
async def _loft(
    route: PigeonRoute | None, *names: str, store: FailpointStore | None = None
) -> AsyncIterator[NurseryRig]:
    others = {} if route is None else {PIGEON: route}
    with trio.fail_after(HANGS):
        async with open_rig(store or FailpointStore(), clock=TrioClock(), others=others) as rig:
            await rig.register(names, mode=PIGEON)
            yield rig


async def _flies(rig: NurseryRig, node: str) -> tuple[Job, str]:
    job = await rig.start(node)
    await until(lambda: rig.live_run(job.id, node).state is RunState.DISPATCHED)
    return job, rig.live_run(job.id, node).id


def _end(exit_code: int, at: float) -> EndTold:
    return EndTold(end=ToldEnd(state=RunState.FAILED, cause="exited", exit_code=exit_code, signal=None, reported_at=at))


async def test_a_run_of_a_new_kind_lives_from_its_order_to_its_end(autojump_clock: object) -> None:
    route = PigeonRoute()
    async with _loft(route, "n") as rig:
        job, run_id = await _flies(rig, "n")
        live = rig.supervisor.run(run_id)
        assert live is not None
        await live.post_durably(NodeStarted(at=rig.services.clock.now()))
        await live.post_durably(_end(3, rig.services.clock.now()))
        held = await rig.run(job.id, "n")
        assert (held.state, held.held_end is not None) == (RunState.RUNNING, True)
        await live.post(OutputOver())
        await rig.ended(job.id)
        run = await rig.run(job.id, "n")
        assert (run.state, run.exit_code, run.route, run.held_end) == (RunState.FAILED, 3, PIGEON, None)
        assert route.sent == ["n"]


async def test_a_held_end_waits_for_output_as_long_as_its_route_says_also_after_a_restart(
    autojump_clock: object,
) -> None:
    store = FailpointStore()
    async with _loft(PigeonRoute(), "n", store=store) as rig:
        job, run_id = await _flies(rig, "n")
        live = rig.supervisor.run(run_id)
        assert live is not None
        await live.post_durably(_end(1, rig.services.clock.now()))
        told = trio.current_time()
    async with _loft(PigeonRoute(), store=store) as rig:
        await rig.ended(job.id)
        assert trio.current_time() - told == pytest.approx(7.0, abs=0.1)
        assert (await rig.run(job.id, "n")).state is RunState.FAILED


async def test_what_may_have_gone_out_is_not_sent_again_and_what_has_not_is(autojump_clock: object) -> None:
    store = FailpointStore()
    before, after = PigeonRoute(), PigeonRoute()
    async with _loft(before, "sent", "waits", store=store) as rig:
        await _flies(rig, "sent")
        before.grounded = True
        await rig.start("waits")
        await trio.sleep(1)
    async with _loft(after, store=store):
        await trio.sleep(1)
        assert (before.sent, after.sent) == (["sent"], ["waits"])


async def test_time_and_input_are_the_routes_to_judge(autojump_clock: object) -> None:
    async with _loft(PigeonRoute(grounded=True), "n") as rig:
        began = trio.current_time()
        await rig.ended((job := await rig.start("n")).id)
        assert trio.current_time() - began == pytest.approx(5.0, abs=0.1)
        assert (await rig.run(job.id, "n")).cause == "no_route"
        request = StartJob(command="work", selection=Names(names=("n",)), input=CommandInput(args={"a": "1"}))
        job = (await rig.jobs.start(OPERATOR, request)).job
        await rig.ended(job.id)
        run = await rig.run(job.id, "n")
        assert (run.cause, run.detail) == ("input_unsupported", "a pigeon carries no input")
        node = rig.registry.get(ORGANIZATION, "n")
        assert node is not None
        assert rig.jobs.resolved(node).route is None


async def test_a_cancel_that_cannot_be_proven_says_so(autojump_clock: object) -> None:
    route = PigeonRoute()
    async with _loft(route, "n") as rig:
        job, _ = await _flies(rig, "n")
        live = rig.supervisor.job(job.id)
        assert live is not None
        await rig.supervisor.cancel(live, ["n"], by="user/ops", whole_job=True)
        await rig.ended(job.id)
        run = await rig.run(job.id, "n")
        assert (run.state, run.proof, route.recalled) == (RunState.CANCEL_UNPROVEN, None, ["n"])


async def test_an_agent_that_replaces_such_a_node_changes_nothing_of_its_runs(autojump_clock: object) -> None:
    async with _loft(PigeonRoute(), "n") as rig, open_agents(["n"]) as agents:
        job, _ = await _flies(rig, "n")
        agent: FakeAgent = agents["n"]
        agent.connect(rig.inbox)
        await until(lambda: len(rig.links) == 1)
        await trio.sleep(1)
        agent.disconnect()
        await trio.sleep(1)
        assert (agent.orders, rig.live_run(job.id, "n").state) == ([], RunState.DISPATCHED)


async def test_a_kind_that_is_not_served_any_more_ends_its_runs_and_harms_nobody(autojump_clock: object) -> None:
    store = FailpointStore()
    async with _loft(route := PigeonRoute(), "sent", "waits", store=store) as rig:
        sent, _ = await _flies(rig, "sent")
        route.grounded = True
        waits = await rig.start("waits")
        await trio.sleep(1)
    async with _loft(None, "new", store=store) as rig:
        new = await rig.start("new")
        for job in (sent, waits, new):
            await rig.ended(job.id)
        assert (await rig.run(sent.id, "sent")).cause == "node_lost"
        for job, node in ((waits, "waits"), (new, "new")):
            run = await rig.run(job.id, node)
            assert (run.state, run.detail) == (RunState.UNAVAILABLE, "this controller does not serve pigeon nodes")
