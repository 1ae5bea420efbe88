"""The desk: where signed orders are handed in, and where one asks after the runs that came of them.

``OrderDesk`` is what the network-facing part of the agent knows of running commands. There are two of it: ``LocalDesk``
(``local_desk``) does it in this process, and ``RemoteDesk`` (``desk_client``) asks the launcher, in whose process there
is a ``LocalDesk`` too. So gate, executor and spool exist once, whatever the form of deployment.

Whoever asks is not believed. An order is judged by its signature and by what this node has on its disk; without a good
one nothing is started and nothing that runs is ended.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from shovey_agent.run.runs import KnownRun
from shovey_trio.core.jobs.command_input import CommandInput
from shovey_trio.core.jobs.model import OutputChunk
from shovey_trio.core.trust.orders import OrderKind, RefusalReason, SignedOrder


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """The order's run is durable and will be started."""

    run: KnownRun


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """The run was known already and nothing was done: what is known of it is worth telling again."""

    run: KnownRun


@dataclass(frozen=True, slots=True, kw_only=True)
class Voided:
    """A run was cancelled before it came here; durably, it never will start."""

    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """A run that lives was told to end; how it ended comes as news."""

    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Declined:
    """The order is not acted on.

    Attributes:
        run_id: empty when nothing of the order can be believed, not even which run it is about.
        order_kind: None likewise.
    """

    reason: RefusalReason
    detail: str = ""
    run_id: str = ""
    order_kind: OrderKind | None = None


Verdict = Taken | Known | Voided | Ending | Declined


@dataclass(frozen=True, slots=True, kw_only=True)
class WhitelistWord:
    """Whether the whitelist permits a command. ``reason`` is the word an order would be refused with."""

    permitted: bool
    reason: str = ""
    detail: str = ""


class NewsListener(Protocol):
    """Who is told what happens to runs."""

    def note(self, run_id: str, *, output: bool = False) -> None:
        """There is something new to tell of a run; with ``output``, only that there is more of it."""

    def hang_up(self, reason: str) -> None:
        """All that was told of runs may be out of date: begin again."""


class OrderDesk(Protocol):
    """Takes orders and has runs. Methods raise ``OSError`` when the disk fails or the launcher is away."""

    def known_runs(self) -> tuple[KnownRun, ...]:
        """Returns all runs in the spool, as they are now."""

    def known_run(self, run_id: str) -> KnownRun | None:
        """Returns one run as it is now, or None when this node does not know it."""

    async def wait_ready(self) -> None:
        """Waits until runs are known and orders can be taken."""

    async def take(self, signed: SignedOrder, *, controller_now: float) -> Verdict:
        """Acts on an order if it may be acted on. What the verdict says is durable.

        Cancelled, it may have been acted on nevertheless: then the same order again is answered with ``Known``, or
        refused as replayed.

        Args:
            signed: as received.
            controller_now: the controller's time, as measured at attach.
        """

    async def ask(self, command: str, given: CommandInput) -> WhitelistWord:
        """Says whether a command with this input would be permitted; nothing is used up by asking."""

    async def read_output(self, run_id: str, position: int, limit: int) -> tuple[OutputChunk, ...]:
        """See ``Executor.read_output``; there may be fewer bytes than ``limit`` though more are there."""

    async def follow(self, run_id: str, *, followed: bool) -> None:
        """Sets whether somebody reads a run's output live."""

    async def confirm(self, run_id: str) -> bool:
        """Removes a run that has ended, because the controller has all of it; whether there was one.

        One that still runs is left alone: only a signed order ends a command.
        """

    async def learn_keys(self, signed_key_set: bytes) -> None:
        """Passes a key set on to whoever judges orders; it is verified there."""

    async def serve(self, listener: NewsListener) -> None:
        """Tells what happens to runs until cancelled."""
