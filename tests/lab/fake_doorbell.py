"""A doorbell without serf: it says which nodes were rung, and wakes those fakes that listen."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import trio

from shovey_trio.core.errors import SerfUnavailable
from shovey_trio.nursery.ports import MemberChange, SerfStatus

# Changes of membership that a test makes before presence has taken the first.
_CHANGES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """One ring: when (by trio's clock), for which job and which nodes."""

    at: float
    job_id: str
    nodes: tuple[str, ...]


class FakeDoorbell:
    """See ``nursery.ports.Doorbell``.

    Attributes:
        rings: what went out.
        came: the nodes whose coming it was told of, in order.
        unavailable: why rings fail; '' when they do not.
    """

    def __init__(self) -> None:
        self.rings: list[Ring] = []
        self.came: list[str] = []
        self.unavailable = ""
        self._members: dict[tuple[str, str], str] = {}
        self._listeners: dict[tuple[str, str], Callable[[], None]] = {}
        self._changes_in, self._changes = trio.open_memory_channel[MemberChange](_CHANGES)

    def set_member(self, organization: str, node: str, status: str) -> None:
        """Makes a node's serf agent alive, failed or left."""
        self._members[organization, node] = status
        self._changes_in.send_nowait(MemberChange(organization=organization, node=node, status=status))

    def on_ring(self, organization: str, node: str, wake: Callable[[], None]) -> None:
        """Has ``wake`` called whenever the node is rung."""
        self._listeners[organization, node] = wake

    def status(self) -> SerfStatus:
        alive = sum(status == "alive" for status in self._members.values())
        return SerfStatus(
            configured=True, connected=not self.unavailable, last_error=self.unavailable, members_alive=alive
        )

    def member_status(self, organization: str, node: str) -> str:
        return self._members.get((organization, node), "")

    def unaddressable(self, organization: str, nodes: Sequence[str]) -> Sequence[str]:
        return ()

    async def ring(self, *, organization: str, job_id: str, nodes: Sequence[str]) -> None:
        await trio.lowlevel.checkpoint()
        if self.unavailable:
            raise SerfUnavailable(self.unavailable)
        self.rings.append(Ring(at=trio.current_time(), job_id=job_id, nodes=tuple(nodes)))
        for node in nodes:
            if self.member_status(organization, node) == "alive" and (organization, node) in self._listeners:
                self._listeners[organization, node]()

    def heard(self, organization: str, node: str) -> None:
        self.came.append(node)

    async def changes(self) -> AsyncIterator[MemberChange]:
        async for change in self._changes:
            yield change
