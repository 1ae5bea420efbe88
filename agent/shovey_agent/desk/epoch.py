"""The highest controller epoch this node has obeyed; orders of a lower one come from a controller of the past."""

from __future__ import annotations

from pathlib import Path

import trio

from shovey_trio.identity.files import write_secret


class EpochFile:
    """The epoch, in memory and in a file that is replaced at once."""

    def __init__(self, path: Path) -> None:
        """Reads the file; blocks. A missing or damaged one counts as 0: the nonces still hold."""
        self._path = path
        try:
            self.value = int(path.read_text("ascii"))
        except (OSError, ValueError):
            self.value = 0

    async def raise_to(self, epoch: int) -> None:
        """Remembers a higher epoch, durably; a lower one changes nothing.

        Raises:
            OSError: it could not be written, and is not in force.
        """
        if epoch > self.value:
            await trio.to_thread.run_sync(write_secret, self._path, f"{epoch}\n".encode("ascii"))
            self.value = epoch
