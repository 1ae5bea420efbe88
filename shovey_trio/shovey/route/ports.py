"""What the legacy route needs from the world; the conventions are those of ``nursery.ports``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, TypeAlias


@dataclass(frozen=True, slots=True)
class LegacyQuery:
    """One query: a signed order and the nodes it is for."""

    organization: str
    nodes: tuple[str, ...]
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """Which nodes go into the next query.

    Attributes:
        together: in the order given, as many as fit.
        never: nodes whose name does not fit beside this payload, not even alone.
    """

    together: tuple[str, ...]
    never: tuple[str, ...]


class LegacyDelivery(Protocol):
    """What serf says of a query that was sent."""

    async def is_lost_on(self, node: str) -> bool:
        """Waits until it is known, and then whether the node's serf agent has not had the query.

        False when it has, and also when it can never be known: whoever sends an order again on the strength of this
        must be sure that nobody got it twice.
        """
        ...


SendQuery: TypeAlias = Callable[[LegacyQuery], Awaitable[LegacyDelivery]]


class LegacyBell(Protocol):
    """Hands whole orders to old nodes, over serf."""

    def member_status(self, organization: str, node: str) -> str:
        """Serf's word for the node's serf agent, whichever of its two names it goes by; '' when serf has neither."""
        ...

    def pack(self, organization: str, nodes: Sequence[str], payload_size: int) -> Packed:
        """Fills one query, exactly to the agent's limit."""
        ...

    def turn(self) -> AbstractAsyncContextManager[SendQuery]:
        """A block that begins when the pace of queries allows one more, with what sends it; others wait meanwhile.

        Raises:
            SerfUnavailable: at the beginning, there is no connection; by the sender, the query may have been sent.
            ShoveyError: serf refused it; nobody got it.
        """
        ...

    def heard(self, organization: str, node: str) -> None:
        """Notes that a node has answered, so that its query makes room for others."""
        ...


class LegacySigner(Protocol):
    """Signs orders with the key that a node holds."""

    def key_for(self, organization: str, node: str) -> str:
        """Which key that is.

        Raises:
            NotFound: there is no such organization (any more).
        """
        ...

    def sign(self, organization: str, key_id: str, fields: Mapping[str, str]) -> bytes:
        """The payload of an order."""
        ...

    def time(self, now: float) -> str:
        """A moment as orders write it."""
        ...
