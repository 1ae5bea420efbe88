"""Whether the store works at present: shared by its writer and its readers."""

from __future__ import annotations

from shovey_trio.core.errors import StoreCorrupt


class StoreHealth:
    """Why writes fail, and the damage after which nothing is served any more."""

    __slots__ = ("_corrupt", "failure")

    def __init__(self) -> None:
        # Why the last write failed; '' while it worked.
        self.failure = ""
        self._corrupt: StoreCorrupt | None = None

    def check(self) -> None:
        """Raises ``StoreCorrupt`` once damage was found, by whichever read or write."""
        if self._corrupt is not None:
            raise StoreCorrupt(self._corrupt.message, **self._corrupt.details)

    def condemn(self, error: StoreCorrupt) -> None:
        """Refuses everything from now on: a damaged file is never served."""
        self._corrupt = error
        self.failure = error.message
