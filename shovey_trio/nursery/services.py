"""What the tasks of jobs and runs share, in one frozen value instead of long parameter lists."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shovey_trio.core.trust.orders import make_nonce
from shovey_trio.nursery.settings import Bounds, Timing

if TYPE_CHECKING:
    from shovey_trio.nursery.links import Links
    from shovey_trio.nursery.ports import NurseryClock
    from shovey_trio.nursery.route import Routes
    from shovey_trio.nursery.watch import CommitHub
    from shovey_trio.store.contract import LiveJobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Shared by every job. A failure of one of them is the daemon's failure, not a run's."""

    store: LiveJobs
    links: Links
    routes: Routes
    hub: CommitHub
    clock: NurseryClock
    epoch: int
    timing: Timing = field(default_factory=Timing)
    bounds: Bounds = field(default_factory=Bounds)
    random_bytes: Callable[[int], bytes] = os.urandom

    def new_nonce(self) -> bytes:
        """A nonce for an order that is made by the present time."""
        return make_nonce(epoch=self.epoch, frame=self.clock.frame, random_bytes=self.random_bytes)
