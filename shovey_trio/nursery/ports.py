"""What the nursery needs from the world: protocols that ``store``, ``serf`` and ``rpc`` implement.

``nursery`` imports none of them; ``lab`` ships fakes of each. Unless a method says otherwise, an
implementation may be cancelled at any await without harm, and a write that was started is finished all the same
(its caller just does not hear of it).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from shovey_trio.core.jobs.command_input import CommandInput
from shovey_trio.core.jobs.model import (
    LinkMode,
)
from shovey_trio.core.trust.key_trust import PublishedKeys
from shovey_trio.core.trust.orders import Order, SignedOrder


class Clock(Protocol):
    """Unix time, so that virtual-time tests have one too."""

    def now(self) -> float:
        """Unix seconds."""
        ...


class NurseryClock(Clock, Protocol):
    """Unix time beside trio's clock: see ``nursery.clock``, which has it.

    Attributes:
        frame: how often a step of the system's clock was followed; times of one frame can be compared.
    """

    frame: int

    def time_of(self, moment: float) -> float:
        """The unix time of a moment of trio's clock."""
        ...

    def moment_of(self, at: float) -> float:
        """The moment of a unix time; never a later one than now."""
        ...


# --- agents ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SendOrder:
    """Hand this order to the node."""

    order: SignedOrder


@dataclass(frozen=True, slots=True, kw_only=True)
class SendReportDurable:
    """The run's report is durable."""

    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SendFollow:
    """Somebody reads the run's output live, or nobody does any more."""

    run_id: str
    followed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SendForget:
    """The run is void."""

    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SendKeys:
    """The organization's signing keys changed."""

    keys: PublishedKeys


@dataclass(frozen=True, slots=True, kw_only=True)
class SendClock:
    """The controller's clock was set; this is what it shows."""

    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SendAskWhitelist:
    """Ask whether the node's whitelist would permit a command."""

    ask_id: str
    command: str
    input: CommandInput


@dataclass(frozen=True, slots=True)
class SendDetachOk:
    """An on-demand agent may leave."""


ToAgent = (
    SendOrder | SendReportDurable | SendFollow | SendForget | SendKeys | SendClock | SendAskWhitelist | SendDetachOk
)


class AgentLink(Protocol):
    """One agent's open control stream."""

    @property
    def organization(self) -> str: ...

    @property
    def node(self) -> str: ...

    @property
    def agent_instance(self) -> str: ...

    @property
    def mode(self) -> LinkMode: ...

    def send_nowait(self, message: ToAgent) -> None:
        """Queues a message; a link that is gone, or whose bounded queue is full (then it is closed), drops it.

        Losing a message is safe: whatever is not answered is sent again when the agent attaches the next time.
        """
        ...

    def close(self, reason: str) -> None:
        """Cuts the stream."""
        ...


class OrderSigner(Protocol):
    """Makes an order's bytes and signs them with the organization's active key."""

    def sign(self, order: Order) -> SignedOrder: ...


# --- serf -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SerfStatus:
    """What is known of the connection to the serf agent."""

    configured: bool
    connected: bool
    since: float | None = None
    last_error: str = ""
    members_alive: int = 0
    query_queue: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberChange:
    """A serf member is alive or not any more; ``status`` is serf's word: alive, failed, left."""

    organization: str
    node: str
    status: str


class Doorbell(Protocol):
    """Rings nodes over serf: tells them that an order waits, without the order."""

    def status(self) -> SerfStatus: ...

    def member_status(self, organization: str, node: str) -> str:
        """Serf's word for the node's serf agent: alive, failed, left, or '' when serf does not know it."""
        ...

    def unaddressable(self, organization: str, nodes: Sequence[str]) -> Sequence[str]:
        """Those nodes whose name in serf (``organization:node``) fits no query; empty when serf is not used."""
        ...

    async def ring(self, *, organization: str, job_id: str, nodes: Sequence[str]) -> None:
        """Rings these nodes with as few queries as possible; returns when serf has taken them.

        Raises:
            SerfUnavailable: there is no serf agent, or too much waits already.
        """
        ...

    def heard(self, organization: str, node: str) -> None:
        """Notes that a node that was rung has come, so that its query makes room for others."""
        ...

    def changes(self) -> AsyncIterator[MemberChange]:
        """Every change of membership from now on, after the present state of every member."""
        ...
