"""What is known of one query: filled by the connection's reader, read by whoever asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import trio

from shovey_trio.core.serf.records import QueryAcked, QueryAnswered, QueryDone


class QueryProgress:
    """Acks and answers of one query. Memory: one entry per member that spoke, answers of at most 1,024 bytes each.

    It is settled when every target has been heard (an answer, or ``mark_heard`` by someone who heard the node
    elsewhere), when serf says ``done``, or when the connection is lost. Acks do not settle it: they say only that a
    serf agent is up.

    Args:
        targets: serf names that are meant.
        on_settled: called once, synchronously, at the moment it settles.
    """

    def __init__(self, targets: Iterable[str], *, on_settled: Callable[[], None]) -> None:
        self._unheard = set(targets)
        self._acked: set[str] = set()
        self._answers: dict[str, bytes] = {}
        self._settled = trio.Event()
        self._done = False
        self._on_settled = on_settled
        self._changed = trio.Event()

    @property
    def acked(self) -> frozenset[str]:
        """Serf names whose agent acknowledged."""
        return frozenset(self._acked)

    @property
    def answers(self) -> Mapping[str, bytes]:
        """First answer of each serf name."""
        return dict(self._answers)

    @property
    def unheard(self) -> frozenset[str]:
        """Targets that have not been heard from."""
        return frozenset(self._unheard)

    @property
    def settled(self) -> bool:
        """Whether waiting longer can teach anything."""
        return self._settled.is_set()

    @property
    def done(self) -> bool:
        """Whether serf has said that the query's time is over: who has not acknowledged by now never will."""
        return self._done

    async def wait_settled(self) -> None:
        """Returns when it is settled; cancelling has no effect on the query."""
        await self._settled.wait()

    async def wait_changed(self) -> None:
        """Returns after the next ack, answer or settlement; at once when it is settled."""
        if self._settled.is_set():
            await trio.lowlevel.checkpoint()
            return
        await self._changed.wait()

    def mark_heard(self, *names: str) -> None:
        """Says that these nodes need not be waited for: they attached, pulled or reported by another way."""
        self._unheard.difference_update(names)
        if not self._unheard:
            self.settle()

    def settle(self) -> None:
        """Ends the waiting now; later records are of no interest. Idempotent."""
        if self._settled.is_set():
            return
        self._settled.set()
        self._changed.set()
        self._on_settled()

    def on_record(self, record: QueryAcked | QueryAnswered | QueryDone) -> None:
        """For the connection's reader: takes a record, never blocks, ignores repetitions."""
        match record:
            case QueryAcked(node=node):
                self._acked.add(node)
            case QueryAnswered(node=node, payload=payload):
                self._answers.setdefault(node, payload)
                self.mark_heard(node)
            case QueryDone():
                self._done = True
                self.settle()
        if not self._settled.is_set():
            self._changed.set()
            self._changed = trio.Event()
