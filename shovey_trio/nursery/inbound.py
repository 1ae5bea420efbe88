"""What agents say, on its way to the run it is about.

A run that is live has a task; everything is posted there. A run that has ended, or whose job has, is answered from the
store: the same words again are confirmed again, later truth is kept as a late report, and a run that does not exist
here is void. A node can speak of its own runs only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import structlog

from shovey_trio.core.errors import RowDamaged
from shovey_trio.core.jobs.events import NodeAttached, NodeKnows, NodeReported, RunEvent
from shovey_trio.core.jobs.model import OutputExtent, Run
from shovey_trio.core.jobs.run_machine import handle
from shovey_trio.core.jobs.states import RunState
from shovey_trio.nursery.handles import PushedChunk, RunHandle
from shovey_trio.nursery.output_pump import continue_output
from shovey_trio.nursery.persist import until_stored, write_latest
from shovey_trio.nursery.ports import AgentLink, SendForget, SendReportDurable
from shovey_trio.nursery.presence import NodePresence
from shovey_trio.nursery.services import Services
from shovey_trio.nursery.supervisor import Supervisor

_log = structlog.get_logger(__name__)

# Ends that nobody but the node can tell.
_TOLD = frozenset(
    {RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED, RunState.NACKED, RunState.INVALID},
)

Foreign = Callable[[str, str, str], None]
"""Called with organization, node and run id when a node speaks of a run that is another node's."""


def nobody_minds(organization: str, node: str, run_id: str) -> None:
    """For where nobody keeps a record of it."""


class AgentInbox:
    """Routes agents' messages. Every method may wait for room in the run's task: that is the agent's backpressure."""

    def __init__(
        self,
        *,
        services: Services,
        supervisor: Supervisor,
        presence: NodePresence,
        foreign: Foreign = nobody_minds,
    ) -> None:
        self._services = services
        self._supervisor = supervisor
        self._presence = presence
        self._links = services.links
        self._foreign = foreign
        # Reports of ended runs whose output is still on its way; at most one for each run of the node, and none that
        # outlives its stream: the next one brings it again.
        self._early: dict[str, tuple[AgentLink, NodeReported]] = {}

    async def positions(self, link: AgentLink, run_ids: list[str]) -> Mapping[str, OutputExtent]:
        """Where the durable output of a node's runs ends; runs that are not the node's are left out."""
        found: dict[str, OutputExtent] = {}
        ended: list[str] = []
        for run_id in run_ids:
            live = self._supervisor.run(run_id)
            run = None
            if live is None:
                with _damage_left():
                    run = await self._services.store.find_run(link.organization, run_id)
                if run is not None and run.node == link.node:
                    ended.append(run_id)
                elif run is not None:
                    self._refuse_foreign(link.organization, link.node, run_id)
            elif _is_of(link.organization, link.node, live.run):
                found[run_id] = live.extent
            else:
                self._refuse_foreign(link.organization, link.node, run_id)
        if ended:
            found |= await self._services.store.output_extents(ended)
        return found

    async def attached(self, link: AgentLink, knows: Mapping[str, NodeKnows]) -> None:
        """Notes a new stream and tells every live run of the node what the node knows of it.

        ``knows`` holds every run in the node's spool that was not confirmed yet; a run not in it is unknown there.
        """
        # A run that begins after this finds the link by itself.
        waiting = self._runs_of(link)
        self._links.add(link)
        await self._presence.attached(link)
        for live in waiting:
            known = knows.get(live.run.id, NodeKnows.NOTHING)
            await live.post(NodeAttached(agent_instance=link.agent_instance, knows=known))

    def detached(self, link: AgentLink, *, asked: bool) -> None:
        """Notes that a stream is gone."""
        self._early = {run_id: early for run_id, early in self._early.items() if early[0] is not link}
        if self._links.remove(link):
            self._presence.detached(link, asked=asked)
            for live in self._runs_of(link):
                if live.contact_lost is not None:
                    live.contact_lost()

    def waiting_orders(self, link: AgentLink) -> int:
        """How many live runs of the node still need its agent's stream."""
        return len(self._runs_of(link))

    def take_leave(self, link: AgentLink) -> bool:
        """Lets an on-demand agent go, unless there is work for it.

        From here on the node has no link, so that an order for it rings instead of going into a stream that closes.
        """
        if self.waiting_orders(link):
            return False
        if self._links.remove(link):
            self._presence.detached(link, asked=True)
        return True

    async def said(self, link: AgentLink, run_id: str, event: RunEvent) -> None:
        """Takes what a node says of one of its runs."""
        live = self._supervisor.run(run_id)
        if live is not None:
            if not _is_of(link.organization, link.node, live.run):
                self._refuse_foreign(link.organization, link.node, run_id)
                return
            if await live.post(event):
                return
        await self._said_after_the_end(link, run_id, event)

    async def pushed(self, organization: str, node: str, run_id: str, pushed: PushedChunk) -> bool:
        """Takes a chunk of output; False when the run takes none (it is not the node's, or does not exist)."""
        live = self._supervisor.run(run_id)
        if live is not None:
            if not _is_of(organization, node, live.run):
                self._refuse_foreign(organization, node, run_id)
                return False
            if await live.push(pushed):
                return True
        return await self._pushed_after_the_end(organization, node, run_id, pushed)

    def _runs_of(self, link: AgentLink) -> list[RunHandle]:
        """The node's live runs, but for those that were given to what was there before this agent."""
        runs = self._supervisor.runs_of_node(link.organization, link.node)
        return [live for live in runs if live.route is self._services.routes.agents]

    async def _said_after_the_end(self, link: AgentLink, run_id: str, event: RunEvent) -> None:
        try:
            run = await self._services.store.find_run(link.organization, run_id)
        except RowDamaged as error:
            # Neither confirmed nor forgotten: the node has the only copy that is whole.
            _log.error("store.damaged_row", error=error.message)
            return
        if run is None or run.node != link.node:
            if run is not None:
                self._refuse_foreign(link.organization, link.node, run_id)
            link.send_nowait(SendForget(run_id=run_id))
            return
        if not run.is_terminal or not isinstance(event, NodeReported):
            return
        if event.report.output_bytes > (await self._services.store.output_extent(run_id)).position:
            # Confirmed, the node would drop its spool and with it the output that is not here yet.
            self._early[run_id] = (link, event)
            return
        outcome = handle(run, event, self._services.clock.now())
        if outcome.run is not run:
            await write_latest(lambda: outcome.run, self._services)
        link.send_nowait(SendReportDurable(run_id=run_id))

    async def _pushed_after_the_end(self, organization: str, node: str, run_id: str, pushed: PushedChunk) -> bool:
        run = None
        with _damage_left():
            run = await self._services.store.find_run(organization, run_id)
        if run is None:
            return False
        if run.node != node:
            self._refuse_foreign(organization, node, run_id)
            return False
        fresh, extent = continue_output(await self._services.store.output_extent(run_id), [pushed.chunk])
        # A node that tells its end ahead of its output may be late with the rest of it.
        may_follow = self._services.routes.of_run(run).output_patience > 0
        if fresh and _was_told(run) and not may_follow:
            return False
        if fresh:

            async def write() -> None:
                await self._services.store.append_output(run, fresh)

            await until_stored(write, longest_pause=self._services.timing.store_retry)
        pushed.acknowledge(extent.position)
        if run_id in self._early:
            link, report = self._early.pop(run_id)
            await self._said_after_the_end(link, run_id, report)
        return True

    def _refuse_foreign(self, organization: str, node: str, run_id: str) -> None:
        _log.warning("agent.foreign_run", node=node, run_id=run_id)
        self._foreign(organization, node, run_id)


@contextmanager
def _damage_left() -> Iterator[None]:
    """Goes on behind the block where a run's row is damaged: the node's stream has other things to tell."""
    try:
        yield
    except RowDamaged as error:
        _log.error("store.damaged_row", error=error.message)


def _was_told(run: Run) -> bool:
    """Whether the node has told how the run ended: all of its output was here then, and more is none of the run's."""
    return run.late_report is not None or run.proof is not None or run.state in _TOLD


def _is_of(organization: str, node: str, run: Run) -> bool:
    return (run.organization, run.node) == (organization, node)
