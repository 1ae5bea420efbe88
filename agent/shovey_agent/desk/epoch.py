"""The highest epoch obeyed for each job: an order of a lower one comes from a controller that has lost the job.

A run's first epoch is in its spool, durably, before it starts; a cancel of a higher one is remembered in memory alone,
because what it has ended stays ended. Between jobs epochs mean nothing: several controllers may give orders at once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

# Jobs remembered: 4,096 × ~150 bytes = 600 KiB. The one heard of longest ago is forgotten first; what is left of it on
# this node is in its run's spool, which refuses a second start by itself.
KEPT: Final = 4096


class JobEpochs:
    """Epochs by job id."""

    def __init__(self, known: Iterable[tuple[str, int]] = ()) -> None:
        """Args:
        known: job ids and epochs of the runs in the spool.
        """
        self._epochs: OrderedDict[str, int] = OrderedDict()
        for job_id, epoch in known:
            self.raise_to(job_id, epoch)

    def of(self, job_id: str) -> int:
        """The highest epoch obeyed for a job; 0 for one that is not known."""
        return self._epochs.get(job_id, 0)

    def raise_to(self, job_id: str, epoch: int) -> None:
        """Remembers a higher epoch; a lower one changes nothing."""
        if epoch > self.of(job_id):
            self._epochs[job_id] = epoch
        if job_id in self._epochs:
            self._epochs.move_to_end(job_id)
        while len(self._epochs) > KEPT:
            self._epochs.popitem(last=False)
