"""How commits become known to those who wait for them.

A store is given a ``contract.CommitNews`` and its writer a function that tells it what was committed. One process that
writes alone needs no more than ``OwnNews``. Where several write, the news also has to ask the database, or to be told
by it, what the others have committed; whoever listens is prepared for word that comes late, twice, or out of order.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from shovey_trio.observe import failpoints
from shovey_trio.store.contract import Committed

_log = structlog.get_logger(__name__)


class OwnNews:
    """The news of this process's own commits, which reaches everybody at once; belongs to the trio thread."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[Committed], None]] = []

    def on_commit(self, listener: Callable[[Committed], None]) -> None:
        """See ``contract.CommitNews``."""
        self._listeners.append(listener)

    def committed(self, committed: Committed) -> None:
        """Tells the listeners, before the writers of this commit go on."""
        if not committed.jobs:
            return
        for listener in self._listeners:
            try:
                failpoints.passing("store.listener")
                listener(committed)
            except Exception:  # noqa: BLE001  # logged with its traceback; see below
                # The commit is a fact; the others and the waiting callers must hear of it.
                _log.exception("store.listener_failed")
