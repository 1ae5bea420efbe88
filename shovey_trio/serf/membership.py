"""Who is in the cluster, as our serf agent sees it: a view that snapshots and events are applied to.

Serf's member events come 1-3 s late, in batches and repeated, and an agent that restarts quickly is not reported at
all; so applying the same thing twice changes nothing, and a snapshot is compared with the view from time to time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

import trio

from shovey_trio.core.serf.records import Member, MembersChanged
from shovey_trio.core.serf.wire import MemberEventKind, MemberStatus


class ChangeKind(StrEnum):
    """What happened to a member."""

    JOINED = "joined"
    FAILED = "failed"
    LEFT = "left"
    UPDATED = "updated"
    REAPED = "reaped"


@dataclass(frozen=True, slots=True, kw_only=True)
class MembershipChange:
    """One change; ``member`` as it is now, for ``REAPED`` as it was."""

    kind: ChangeKind
    member: Member


_KINDS: Mapping[MemberStatus, ChangeKind] = MappingProxyType(
    {
        MemberStatus.ALIVE: ChangeKind.JOINED,
        MemberStatus.FAILED: ChangeKind.FAILED,
        MemberStatus.LEAVING: ChangeKind.LEFT,
        MemberStatus.LEFT: ChangeKind.LEFT,
        MemberStatus.NONE: ChangeKind.UPDATED,
    }
)


class MembershipFeed:
    """The changes since the last look.

    Several changes of one member become the latest, so a slow reader costs one entry per member and ends up with the
    truth.
    """

    def __init__(self) -> None:
        self._changes: dict[str, MembershipChange] = {}
        self._filled = trio.Event()

    async def next_batch(self) -> tuple[MembershipChange, ...]:
        """Waits for changes and takes them all; cancelling loses none."""
        await self._filled.wait()
        self._filled = trio.Event()
        changes = tuple(self._changes.values())
        self._changes.clear()
        return changes

    def add(self, change: MembershipChange) -> None:
        """For ``Membership``."""
        # Latest last: the order of a batch is the order in which the members came to be as they are.
        self._changes.pop(change.member.name, None)
        self._changes[change.member.name] = change
        self._filled.set()


class Membership:
    """The view. Reading is synchronous and always consistent; it changes only where the caller awaits."""

    def __init__(self) -> None:
        self._members: dict[str, Member] = {}
        self._alive = 0
        self._feeds: set[MembershipFeed] = set()
        self._changed = trio.Event()

    @property
    def members(self) -> Mapping[str, Member]:
        """All known members by serf name, a live view; a reaped member is gone from it."""
        return MappingProxyType(self._members)

    @property
    def alive_count(self) -> int:
        """How many are alive."""
        return self._alive

    def is_alive(self, name: str) -> bool:
        """Whether the serf agent of that name is alive. The program behind it may not be."""
        member = self._members.get(name)
        return member is not None and member.status is MemberStatus.ALIVE

    @contextmanager
    def feed(self) -> Iterator[MembershipFeed]:
        """Changes from now on: read ``members`` first thing inside and nothing is missed or doubled."""
        feed = MembershipFeed()
        self._feeds.add(feed)
        try:
            yield feed
        finally:
            self._feeds.discard(feed)

    async def wait_until(self, predicate: Callable[[Membership], bool]) -> None:
        """Returns when ``predicate`` holds; it is asked again after each change."""
        while not predicate(self):
            await self._changed.wait()
        await trio.lowlevel.checkpoint()

    def apply_snapshot(self, members: Iterable[Member]) -> tuple[MembershipChange, ...]:
        """Makes the view equal to what the agent knows; one pass. Returns the differences, the vanished ones last."""
        new = {member.name: member for member in members}
        changes = [change for member in new.values() if (change := self._put(member)) is not None]
        changes += [self._reap(name) for name in self._members.keys() - new.keys()]
        return self._publish(changes)

    def apply_event(self, event: MembersChanged) -> tuple[MembershipChange, ...]:
        """Applies a batch of the agent's; what is known already is no change."""
        if event.kind is MemberEventKind.REAP:
            changes = [self._reap(member.name) for member in event.members if member.name in self._members]
        else:
            changes = [change for member in event.members if (change := self._put(member)) is not None]
        return self._publish(changes)

    def _put(self, member: Member) -> MembershipChange | None:
        before = self._members.get(member.name)
        if before == member:
            return None
        self._members[member.name] = member
        self._alive += (member.status is MemberStatus.ALIVE) - (
            before is not None and before.status is MemberStatus.ALIVE
        )
        kind = _KINDS[member.status]
        if before is not None and _KINDS[before.status] is kind:
            kind = ChangeKind.UPDATED
        return MembershipChange(kind=kind, member=member)

    def _reap(self, name: str) -> MembershipChange:
        member = self._members.pop(name)
        self._alive -= member.status is MemberStatus.ALIVE
        return MembershipChange(kind=ChangeKind.REAPED, member=member)

    def _publish(self, changes: list[MembershipChange]) -> tuple[MembershipChange, ...]:
        for feed in self._feeds:
            for change in changes:
                feed.add(change)
        if changes:
            self._changed.set()
            self._changed = trio.Event()
        return tuple(changes)
