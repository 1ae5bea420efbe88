"""The whitelist as a file that may change at any time."""

from __future__ import annotations

from pathlib import Path

import structlog

from shovey_trio.core.whitelist import MAX_FILE_BYTES, Problem, Whitelist, WhitelistInvalid, parse_whitelist

_log = structlog.get_logger()


class WhitelistFile:
    """The newest whitelist that was whole.

    Attributes:
        problems: what is wrong with the file as it is now; empty while it is the one in force.
    """

    def __init__(self, path: Path, *, when_missing: Whitelist | None = None) -> None:
        """Reads the file. Blocks.

        Args:
            path: the file.
            when_missing: in force as long as there was no file yet: for the place where nobody had to put one.

        Raises:
            WhitelistInvalid: it is broken, or missing with nothing to stand in.
        """
        self._path = path
        self._seen = _identity(path)
        self.problems: tuple[Problem, ...] = ()
        if self._seen is None and when_missing is not None:
            self._whitelist = when_missing
            _log.info("whitelist.default", path=str(path), commands=sorted(when_missing.entries))
        else:
            self._whitelist = _read(path)

    def current(self) -> Whitelist:
        """Returns the whitelist in force, reading the file again if it is another one than before. Blocks briefly.

        A file that is broken or gone keeps the one in force, and is logged once.
        """
        identity = _identity(self._path)
        if identity != self._seen:
            self._seen = identity
            try:
                self._whitelist = _read(self._path)
            except WhitelistInvalid as error:
                self.problems = error.problems
                _log.error("whitelist.kept", path=str(self._path), problems=[str(p) for p in error.problems])
            else:
                self.problems = ()
                _log.info("whitelist.loaded", path=str(self._path), commands=len(self._whitelist.entries))
        return self._whitelist


def _identity(path: Path) -> tuple[int, ...] | None:
    """Returns what changes when the file is edited, replaced, or removed (then None)."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _read(path: Path) -> Whitelist:
    try:
        # A FIFO would block at open, a device might never end.
        if path.exists() and not path.is_file():
            raise WhitelistInvalid((Problem(entry="", message="not a regular file"),))
        with path.open("rb") as file:
            return parse_whitelist(file.read(MAX_FILE_BYTES + 1))
    except OSError as error:
        raise WhitelistInvalid((Problem(entry="", message=f"cannot be read: {error.strerror}"),)) from error
