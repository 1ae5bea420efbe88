"""The route to nodes with an agent of ours: the agent's open stream, and a doorbell that makes it open one.

The agent runs an order once however often it gets it, and tells what it knows of a run whenever it attaches. So a start
order is noted as sent without waiting for the disk, and goes out again until it is answered.
"""

from __future__ import annotations

import trio

from shovey_trio.core.jobs.command_input import NO_INPUT, CommandInput
from shovey_trio.core.jobs.events import ConfirmReport, ForgetRun, OrderSent
from shovey_trio.core.jobs.model import Job, LinkMode, Node, Run
from shovey_trio.core.jobs.run_machine import handle
from shovey_trio.core.jobs.states import UNANSWERED_RUN_STATES
from shovey_trio.core.trust.orders import Order, OrderKind
from shovey_trio.nursery.links import Links
from shovey_trio.nursery.ports import Doorbell, OrderSigner, SendFollow, SendForget, SendOrder, SendReportDurable
from shovey_trio.nursery.route import DOORBELL, STREAM, RunAtWork
from shovey_trio.nursery.settings import Timing
from shovey_trio.routes.dispatch import Dispatcher


class StreamRoute:
    """Implements ``nursery.route.NodeRoute``."""

    may_repeat = True
    tells_once = False
    # An agent repeats its report until it is confirmed, so none is held.
    output_patience = 0.0

    def __init__(self, *, links: Links, doorbell: Doorbell, signer: OrderSigner, timing: Timing) -> None:
        self._links = links
        self._doorbell = doorbell
        self._dispatcher = Dispatcher(links=links, doorbell=doorbell, timing=timing)
        self._signer = signer
        self._timing = timing

    def acceptance_until(self, job: Job, run: Run) -> float:
        return self._timing.acceptance_until(job, run)

    def unsupported(self, job: Job) -> str:
        return ""

    def way(self, node: Node) -> str | None:
        if self._links.get(node.organization, node.name) is not None:
            return STREAM
        alive = self._doorbell.member_status(node.organization, node.name) == "alive"
        return DOORBELL if node.link == LinkMode.ON_DEMAND and alive else None

    def not_asked(self, node: Node) -> str:
        why = "the node is not attached"
        return f"{why}: it is on demand, and a question does not wake it" if node.link == LinkMode.ON_DEMAND else why

    def start_nowait(self, run: RunAtWork) -> bool:
        """Notes that the order goes out, then lets it go out: without a pause between the two.

        A cancel that comes between them would otherwise take the run for never sent. A node without a stream gets it
        when it attaches.
        """
        before, services = run.handle.run, run.services
        link = self._links.get(before.organization, before.node)
        if link is None:
            return False
        if before.state not in UNANSWERED_RUN_STATES or before.cancelling or run.job.has_lost_secrets:
            return True  # what the node knows of the run decides
        until = self.acceptance_until(run.job.job, before)
        instance = before.agent_instance or link.agent_instance
        order = make_order(run, OrderKind.START, agent_instance=instance, until=until, given=run.job.input)
        signed = self._signer.sign(order)
        way = DOORBELL if run.handle.memo == DOORBELL else STREAM
        sent = OrderSent(route=way, agent_instance=instance, expires_at=until, key_id=signed.key_id)
        run.handle.run = handle(before, sent, services.clock.now()).run
        services.store.write_run_soon(run.handle.run)
        link.send_nowait(SendOrder(order=signed))
        if services.hub.is_followed(before.job_id, before.node):
            link.send_nowait(SendFollow(run_id=before.id, followed=True))
        return True

    async def start(self, run: RunAtWork) -> None:
        """Brings the node here, until it is or the run has its answer by another way.

        The order goes out when the node has said what it knows (``NodeAttached``), so none is sent that it has.
        """
        wanted = run.handle.run
        reached = await self._dispatcher.reach(organization=wanted.organization, job_id=wanted.job_id, node=wanted.node)
        run.handle.memo = reached.way

    async def cancel(self, run: RunAtWork) -> None:
        """Hands the node a cancel order until this is cancelled, with the end of the run."""
        while True:
            wanted = run.handle.run
            reached = await self._dispatcher.reach(
                organization=wanted.organization, job_id=wanted.job_id, node=wanted.node
            )
            order = make_order(
                run,
                OrderKind.CANCEL,
                agent_instance=wanted.agent_instance or reached.link.agent_instance,
                until=run.services.clock.now() + self._timing.acceptance,
            )
            reached.link.send_nowait(SendOrder(order=self._signer.sign(order)))
            with trio.move_on_after(self._timing.cancel_retry + run.job.job.kill_grace):
                await self._links.wait_gone(reached.link)

    async def serve(self) -> None:
        await self._dispatcher.serve()

    def tell(self, run: Run, word: ConfirmReport | ForgetRun) -> None:
        link = self._links.get(run.organization, run.node)
        if link is None:
            return  # the node asks again when it attaches
        match word:
            case ConfirmReport():
                link.send_nowait(SendReportDurable(run_id=run.id))
            case ForgetRun():
                link.send_nowait(SendForget(run_id=run.id))


def make_order(
    run: RunAtWork, kind: OrderKind, *, agent_instance: str, until: float, given: CommandInput = NO_INPUT
) -> Order:
    """The order of a kind for a run. A start order carries the same nonce however often it is made."""
    target, job, services = run.handle.run, run.job.job, run.services
    return Order(
        organization=target.organization,
        node=target.node,
        agent_instance=agent_instance,
        job_id=target.job_id,
        run_id=target.id,
        kind=kind,
        command=job.command,
        run_timeout=job.run_timeout,
        kill_grace=job.kill_grace,
        issued_at=services.clock.now(),
        expires_at=until,
        nonce=target.nonce if kind is OrderKind.START else services.new_nonce(),
        epoch=job.epoch,
        input=given,
    )
