"""What a peer can have written into the log: all of it counted, and so many lines a minute.

Whoever may hand in orders may hand in bad ones as fast as the machine takes them, and a log is on a disk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import structlog
import trio

_log = structlog.get_logger(__name__)

# Lines in one minute; what is beyond them is told as numbers at the beginning of the next.
_LINES = 60
_WINDOW = 60.0


class LineBudget:
    """Writes lines as long as there are not too many of them."""

    def __init__(self) -> None:
        self._window_ends = 0.0
        self._lines = 0
        self._unwritten: Counter[str] = Counter()

    def info(self, event: str, **fields: Any) -> None:
        """Writes a line, or counts it."""
        self._write(_log.info, event, fields)

    def warn(self, event: str, **fields: Any) -> None:
        """Writes a line, or counts it."""
        self._write(_log.warning, event, fields)

    def _write(self, write: Callable[..., Any], event: str, fields: dict[str, Any]) -> None:
        now = trio.current_time()
        if now >= self._window_ends:
            self._begin_window(now)
        if self._lines >= _LINES:
            self._unwritten[event] += 1
            return
        self._lines += 1
        write(event, **fields)

    def _begin_window(self, now: float) -> None:
        self._window_ends = now + _WINDOW
        self._lines = 0
        if self._unwritten:
            _log.warning("lines.left_out", **self._unwritten)
            self._unwritten.clear()


class RefusalLog:
    """Counts and logs refusals.

    Attributes:
        counts: how often each reason was met, since this process began.
    """

    def __init__(self, budget: LineBudget | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self._budget = budget or LineBudget()

    def note(self, reason: str, *, detail: str, run_id: str) -> None:
        """Notes one refusal; ``run_id`` is empty where the order could not be believed."""
        self.counts[reason] += 1
        count = self.counts[reason]
        self._budget.warn("order.refused", reason=reason, detail=detail, run_id=run_id or None, count=count)
