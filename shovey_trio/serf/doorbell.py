"""The controller's doorbell: ``nursery.ports.Doorbell`` over a serf agent, and what stands in where there is none."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shovey_trio.core.errors import SerfUnavailable, ShoveyError
from shovey_trio.core.serf.doorbell import DOORBELL_SIZE, Doorbell, DoorbellKind, organization_hash, short_key_id
from shovey_trio.core.serf.doorbell_plan import doorbell_frame, plan_doorbells
from shovey_trio.core.serf.size import check_names
from shovey_trio.nursery.ports import Clock, MemberChange, SerfStatus
from shovey_trio.serf.link import SerfLink
from shovey_trio.serf.membership import MembershipFeed
from shovey_trio.serf.progress import QueryProgress

# A doorbell is good for as long as its query may travel, and for the clocks to differ.
_LIFETIME = 120


class SerfDoorbell:
    """Rings over one serf agent. The link must be running.

    ``signing_key`` says which key signs for an organization at a time (unix seconds): one that agents know which have
    not called lately.
    """

    def __init__(
        self,
        *,
        link: SerfLink,
        signing_key: Callable[[str, float], Ed25519PrivateKey],
        epoch: int,
        clock: Clock,
        limit: int,
    ) -> None:
        self._link = link
        self._signing_key = signing_key
        self._epoch = epoch
        self._clock = clock
        self._limit = limit
        # Queries with targets not heard from; the issuer lets at most ten be so.
        self._open: list[QueryProgress] = []

    def status(self) -> SerfStatus:
        now = self._link.snapshot()
        return SerfStatus(
            configured=True,
            connected=now.connected,
            since=now.since,
            last_error=now.last_error or "",
            members_alive=now.alive,
            query_queue=now.query_queue,
        )

    def member_status(self, organization: str, node: str) -> str:
        member = self._link.membership.members.get(serf_name(organization, node))
        return "" if member is None else member.status.value

    def unaddressable(self, organization: str, nodes: Sequence[str]) -> Sequence[str]:
        frame = doorbell_frame(self._source(), max(len(self._link.membership.members), len(nodes)))
        names = [serf_name(organization, node) for node in nodes]
        problems = check_names(names, frame=frame, payload_size=DOORBELL_SIZE, limit=self._limit)
        return [problem.name.partition(":")[2] for problem in problems]

    async def ring(self, *, organization: str, job_id: str, nodes: Sequence[str]) -> None:
        """Rings these nodes; see ``nursery.ports.Doorbell``. Waits for the pace of queries, not for answers.

        Raises:
            SerfUnavailable: serf is away, has too much queued, or takes no such query.
        """
        if not self._link.snapshot().connected:
            raise SerfUnavailable("there is no connection to the serf agent")
        now = int(self._clock.now())
        private_key = self._signing_key(organization, now)
        doorbell = Doorbell(
            kind=DoorbellKind.START,
            key_id=short_key_id(private_key.public_key()),
            organization=organization_hash(organization),
            job_id=job_id,
            spread_ms=0,
            issued_at=now,
            expires_at=now + _LIFETIME,
            epoch=self._epoch,
        )
        try:
            queries = plan_doorbells(
                doorbell,
                [serf_name(organization, node) for node in nodes],
                signer=private_key,
                source_node=self._source(),
                members=len(self._link.membership.members),
                limit=self._limit,
            )
            for query in queries:
                progress = await self._link.ring(query)
                self._open = [known for known in self._open if not known.settled] + [progress]
        except SerfUnavailable:
            raise
        except ShoveyError as error:
            # Refused, does not fit, garbage: for a run they all mean that this way to its node is closed.
            raise SerfUnavailable(f"{error.reason}: {error.message}") from error

    def heard(self, organization: str, node: str) -> None:
        name = serf_name(organization, node)
        for progress in self._open:
            progress.mark_heard(name)

    def changes(self) -> AsyncIterator[MemberChange]:
        return _Changes(self._link)

    def _source(self) -> str:
        return self._link.snapshot().node_name or ""


class NoDoorbell:
    """The doorbell of a controller that is not to use serf: only attached agents can be reached."""

    def status(self) -> SerfStatus:
        return SerfStatus(configured=False, connected=False)

    def member_status(self, organization: str, node: str) -> str:
        return ""

    def unaddressable(self, organization: str, nodes: Sequence[str]) -> Sequence[str]:
        return ()

    async def ring(self, *, organization: str, job_id: str, nodes: Sequence[str]) -> None:
        await trio.lowlevel.checkpoint()
        raise SerfUnavailable("this controller does not use serf")

    def heard(self, organization: str, node: str) -> None:
        pass  # nobody was rung

    def changes(self) -> AsyncIterator[MemberChange]:
        return _NoChanges()


def serf_name(organization: str, node: str) -> str:
    """A node's name in serf."""
    return f"{organization}:{node}"


class _Changes:
    """The present members first, then every change."""

    def __init__(self, link: SerfLink) -> None:
        self._link = link
        self._feed_scope = link.membership.feed()
        self._feed: MembershipFeed | None = None
        self._pending: list[MemberChange] = []

    def __aiter__(self) -> AsyncIterator[MemberChange]:
        return self

    async def __anext__(self) -> MemberChange:
        if self._feed is None:
            self._feed = self._feed_scope.__enter__()  # for as long as the controller lives
            present = self._link.membership.members.values()
            self._pending = [self._change(member.name, member.status.value) for member in present]
            self._pending.reverse()
        while not self._pending:
            batch = await self._feed.next_batch()
            self._pending = [self._change(change.member.name, change.member.status.value) for change in batch]
            self._pending.reverse()
        await trio.lowlevel.checkpoint()
        return self._pending.pop()

    @staticmethod
    def _change(name: str, status: str) -> MemberChange:
        organization, _, node = name.partition(":")
        return MemberChange(organization=organization, node=node, status=status)


class _NoChanges:
    def __aiter__(self) -> AsyncIterator[MemberChange]:
        return self

    async def __anext__(self) -> MemberChange:
        await trio.sleep_forever()
        raise AssertionError("unreachable")
