"""How a node is reached: everything in which kinds of nodes differ, as their runs see it.

A run has one route for its life, chosen by its node's kind when the run is made. One object serves all runs of a kind;
what it has to remember of one run is in ``RunHandle.memo``. What a node says comes as ``core.jobs.events``, the same
for all kinds: a route, or what listens for it, translates.

The rules of this file:

* ``may_repeat`` says who keeps *at most once*. With it the node does: the same start order may be handed out again and
  again. Without it this side does: that an order goes out is durable before it does, and it is not sent again.
* A kind that nothing here serves (its wing is gone, or switched off) has a route too, on which nothing is sent. Its
  runs end; they never keep the controller from starting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import trio

from shovey_trio.core.jobs.events import CancelUnproven, ConfirmReport, ForgetRun, NodeUnavailable
from shovey_trio.core.jobs.model import Job, Node, Run

if TYPE_CHECKING:
    from shovey_trio.nursery.handles import JobHandle, RunHandle
    from shovey_trio.nursery.services import Services

# The words for the ways of our own agents' route; every other word in ``Run.route`` is a kind of its own.
STREAM = "stream"
DOORBELL = "doorbell"


class RunAtWork(Protocol):
    """A live run as its route may use it: what a run's task shares with the work that it has done beside it."""

    handle: RunHandle
    job: JobHandle
    services: Services


class NodeRoute(Protocol):
    """The way to the nodes of one kind.

    Attributes:
        may_repeat: whether a start order may go out again, because its node acts on it once; see the rules above.
        tells_once: whether a node tells a run's end once, by its time limit at the latest, and not when it comes back.
        output_patience: how many seconds the last output of a run is waited for once its node has told the end.
    """

    may_repeat: bool
    tells_once: bool
    output_patience: float

    def acceptance_until(self, job: Job, run: Run) -> float:
        """Until when a run's start order may be answered, in unix seconds; derived, so the same after a restart."""
        ...

    def unsupported(self, job: Job) -> str:
        """Why these nodes cannot be given such a job; empty when they can."""
        ...

    def way(self, node: Node) -> str | None:
        """How an order would go to a node now; None when it would have to wait."""
        ...

    def not_asked(self, node: Node) -> str:
        """Why a node without a stream cannot be asked about its whitelist."""
        ...

    def start_nowait(self, run: RunAtWork) -> bool:
        """Hands the start order out if that needs no waiting, and notes it; False when ``start`` has to."""
        ...

    async def start(self, run: RunAtWork) -> None:
        """Does what takes time for the start order to come to the node. Cancelled when the node has answered.

        Called again when contact is lost before the answer, or a new order is wanted.
        """
        ...

    async def cancel(self, run: RunAtWork) -> None:
        """Hands the cancel out, again if need be, until it is cancelled with the end of the run."""
        ...

    async def serve(self) -> None:
        """Does what all runs of the kind share, until cancelled."""
        ...

    def tell(self, run: Run, word: ConfirmReport | ForgetRun) -> None:
        """Tells the node, if that is possible now; nothing depends on it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Routes:
    """Every route of a controller.

    Attributes:
        agents: to nodes with an agent of ours.
        others: by kind of node.
    """

    agents: NodeRoute
    others: Mapping[str, NodeRoute]

    def of_node(self, node: Node) -> NodeRoute:
        return self._of_kind(node.kind)

    def of_run(self, run: Run) -> NodeRoute:
        return self._of_kind(None if run.route in (STREAM, DOORBELL) else run.route)

    def _of_kind(self, kind: str | None) -> NodeRoute:
        return self.agents if kind is None else self.others.get(kind, _UNSERVED)


# Seconds for what was sent before the kind was not served any more.
_LAST_WORDS = 60.0


class _Unserved:
    """The route to nodes of a kind that this controller does not serve."""

    may_repeat = False
    tells_once = False
    output_patience = 0.0

    def acceptance_until(self, job: Job, run: Run) -> float:
        return run.updated_at + _LAST_WORDS

    def unsupported(self, job: Job) -> str:
        return ""

    def way(self, node: Node) -> str | None:
        return None

    def not_asked(self, node: Node) -> str:
        return f"this controller does not serve {node.link} nodes"

    def start_nowait(self, run: RunAtWork) -> bool:
        return False

    async def start(self, run: RunAtWork) -> None:
        kind = run.handle.run.route
        detail = f"this controller does not serve {kind} nodes"
        await run.handle.post(NodeUnavailable(cause="no_route", detail=detail))

    async def cancel(self, run: RunAtWork) -> None:
        await trio.sleep(run.job.job.kill_grace)
        await run.handle.post(CancelUnproven())

    async def serve(self) -> None:
        await trio.sleep_forever()

    def tell(self, run: Run, word: ConfirmReport | ForgetRun) -> None:
        pass


_UNSERVED = _Unserved()
