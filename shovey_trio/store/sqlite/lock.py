"""The lock of who serves a store, migrates it, or puts another in its place."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from shovey_trio.core.errors import StoreUnavailable

# Stores that this process has locked, by device and inode. Opening and closing a file gives up the locks that SQLite
# has on it in the same process, so what is known to be locked is not opened to find that out.
_held: set[tuple[int, int]] = set()


class StoreLock:
    """Locks the store's file itself, so that nothing that is deleted beside it lets a second process in.

    ``flock`` and SQLite's own locks (``fcntl``) do not know of each other. The file ``.lock`` is locked too: it holds
    while the store's own file is missing, and it is all that earlier versions go by.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._key: tuple[int, int] | None = None
        self._descriptors: list[int] = []

    def acquire(self) -> None:
        """Takes the lock; nothing happens to one that is held. A store that is not there is not made.

        Raises:
            StoreUnavailable: another has it.
            OSError: a file cannot be opened.
        """
        if self._key is not None:
            return
        if self._path.exists() and _key(self._path.stat()) in _held:
            raise self._taken()
        try:
            self._take(f"{self._path}.lock", os.O_CREAT)
            if self._path.exists():
                self._take(str(self._path), 0)
        except BlockingIOError as error:
            self.close()
            raise self._taken() from error
        self._key = _key(os.fstat(self._descriptors[-1]))
        _held.add(self._key)

    def release(self) -> None:
        """Gives it up and keeps the files open: closing the store's own is safe only once SQLite has closed it."""
        for descriptor in self._descriptors:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        _held.discard(self._key or (0, 0))
        self._key = None

    def close(self) -> None:
        """Gives it up. The files stay: removing one would let two processes lock two files."""
        self.release()
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _take(self, name: str, flags: int) -> None:
        self._descriptors.append(os.open(name, os.O_RDWR | os.O_CLOEXEC | flags, 0o600))
        fcntl.flock(self._descriptors[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _taken(self) -> StoreUnavailable:
        return StoreUnavailable(f"{self._path} is served by another process", path=str(self._path))


def _key(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
