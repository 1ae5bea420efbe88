"""How fast serf's gossip carries queries: a model of its bottleneck, for emulated clusters.

The rules of this file (serf and memberlist as they were measured; packets of 1,400 bytes):

* Every agent sends about 17 packets a second, however many members there are: 15 of gossip and 2 that ride along.
* A packet holds as many messages as fit; what an agent has to send besides takes its share of them.
* A message is sent 4 × ⌈log10(N + 1)⌉ times by each agent, then forgotten. Whom it has not reached by then never
  gets it.

Each message spreads as a rumour does: every packet that an informed member sends informs one member at random, and how
many of its packets carry this message depends on what else an average member has by then. That is close to what was
measured with 100 agents (bursts of 10, 50 and 200 queries) and simulated for 1,000 (one query: half of the members
within 0.6 s, all within 1 s; ten at once: 2 s; above one a second of 1 KB each the queue grows). What is sent above
that rate for long fares worse here than it does in reality. Lost packets and the noise of small clusters are left out.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

PACKETS_PER_SECOND: Final = 17.0
#: Seconds of one step of the model.
STEP: Final = 0.05
_PACKET: Final = 1_398
# Of each message in a packet: its length, and the byte that says that it is serf's.
_OVERHEAD: Final = 3


@dataclass(slots=True, kw_only=True, eq=False)
class Rumour:
    """A message under way.

    Attributes:
        size: raw bytes of the query.
        waiting: those it is for that have not got it, the next one last, each behind the share of members that have
            it by then.
        reached: how many members have it; the sender has from the beginning.
        sent: how often an average member has sent it.
    """

    size: int
    waiting: list[tuple[float, str]]
    reached: float = 1.0
    sent: float = 0.0


@dataclass(slots=True)
class Gossip:
    """The gossip of one cluster. Time passes with ``step``.

    Args:
        members: how many there are, the sender included.
        random: decides who hears first.
    """

    members: int
    random: random.Random
    _queue: list[Rumour] = field(default_factory=list)

    @property
    def depth(self) -> int:
        """Messages that are still being sent: ``query_queue`` of serf's statistics."""
        return len(self._queue)

    def carries(self, rumour: Rumour) -> bool:
        """Whether a message is still being sent."""
        return rumour in self._queue

    def add(self, names: Sequence[str], *, size: int) -> Rumour:
        """A query of ``size`` raw bytes starts out, to be heard by these members among all others."""
        waiting = sorted(((self.random.random(), name) for name in names), reverse=True)
        rumour = Rumour(size=size, waiting=waiting)
        self._queue.append(rumour)
        return rumour

    def step(self) -> list[tuple[Rumour, list[str]]]:
        """Lets ``STEP`` seconds pass: who has heard what meanwhile."""
        heard: list[tuple[Rumour, list[str]]] = []
        carried = sum(self._expected(rumour) for rumour in self._queue)
        copies = [PACKETS_PER_SECOND * STEP * self._share_of_packets(rumour, carried) for rumour in self._queue]
        for rumour, count in zip(self._queue, copies, strict=True):
            informed = rumour.reached / self.members
            rumour.sent += count * informed
            rumour.reached += (self.members - rumour.reached) * -math.expm1(-count * informed)
            share = (rumour.reached - 1 + 0.5) / (self.members - 1)
            names: list[str] = []
            while rumour.waiting and rumour.waiting[-1][0] <= share:
                names.append(rumour.waiting.pop()[1])
            if names:
                heard.append((rumour, names))
        limit = 4 * math.ceil(math.log10(self.members + 1))
        self._queue = [rumour for rumour in self._queue if rumour.sent < limit]
        return heard

    def _expected(self, rumour: Rumour) -> float:
        """Bytes of this message among what an average member has to send."""
        return rumour.reached / self.members * (rumour.size + _OVERHEAD)

    def _share_of_packets(self, rumour: Rumour, carried: float) -> float:
        """Which part of the packets of a member that has it carry this message, beside what else that member has."""
        # What fits no packet goes alone: only an emulation that was told to let it pass has such queries.
        own = min(rumour.size + _OVERHEAD, _PACKET)
        return min(_PACKET / (own + carried - self._expected(rumour)), 1.0)
