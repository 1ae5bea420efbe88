"""Places that callers share: so many altogether, and so many for any one of them.

One class for everything that somebody can take and keep: calls, watchers, control streams. Who somebody is, is for the
owner to say: a proven identity where there is one, else the address. What is kept is one counter per caller who has a
place now.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from shovey_trio.core.errors import Overloaded

# Seconds after which somebody who found no place may try again.
_COME_BACK: Final = "5"


class Shares:
    """Places with a bound for all and one for each.

    Args:
        limit: what the refusal calls the bound for all; the bound for one is ``LIMIT_per_caller``.
        total: places altogether; None where callers are bounded otherwise.
        each: places of one caller.
    """

    def __init__(self, limit: str, *, total: int | None, each: int) -> None:
        self._limit = limit
        self._total = total
        self._each = each
        self._all = 0
        self._taken: Counter[str] = Counter()

    @property
    def taken(self) -> int:
        """How many places are taken."""
        return self._all

    def take(self, who: str) -> Callable[[], None]:
        """Takes a place of ``who``; what is returned gives it back, and must be called once.

        Raises:
            Overloaded: there is none left, altogether or for ``who``; ``limit`` says which.
        """
        if self._taken[who] >= self._each:
            raise Overloaded(
                f"the same caller already has {self._each}", limit=f"{self._limit}_per_caller", retry_after_s=_COME_BACK
            )
        if self._total is not None and self._all >= self._total:
            raise Overloaded(f"all {self._total} are taken", limit=self._limit, retry_after_s=_COME_BACK)
        self._all += 1
        self._taken[who] += 1
        return partial(self._give_back, who)

    @contextmanager
    def place(self, who: str) -> Iterator[None]:
        """A place of ``who`` for the block; raises as ``take``."""
        give_back = self.take(who)
        try:
            yield
        finally:
            give_back()

    def _give_back(self, who: str) -> None:
        self._all -= 1
        self._taken[who] -= 1
        if not self._taken[who]:
            del self._taken[who]
