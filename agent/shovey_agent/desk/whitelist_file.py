"""The whitelist as a file that may change at any time."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

import structlog

from shovey_trio.core.whitelist.whitelist import (
    DEFAULT_WHITELIST,
    MAX_FILE_BYTES,
    Problem,
    Whitelist,
    WhitelistInvalid,
    parse_whitelist,
)

_log = structlog.get_logger()

#: Where no file is needed: without one, the built-in whitelist (``chef-client`` alone) is in force.
DEFAULT_WHITELIST_FILE: Final = Path("/etc/shovey-agent/whitelist.json")


class WhitelistFile:
    """The newest whitelist that was whole.

    Attributes:
        problems: what is wrong with the file as it is now; empty while it is the one in force.
    """

    def __init__(self, path: Path, *, when_missing: Whitelist | None = None, guarded: bool = False) -> None:
        """Reads the file. Blocks.

        Args:
            path: the file.
            when_missing: in force as long as there was no file yet: for the place where nobody had to put one.
            guarded: whether a file that somebody else than root and this process's account could have written is
                a broken one.

        Raises:
            WhitelistInvalid: it is broken, or missing with nothing to stand in.
        """
        self._path = path
        self._guarded = guarded
        self._seen = _identity(path)
        self.problems: tuple[Problem, ...] = ()
        if self._seen is None and when_missing is not None:
            self._whitelist = when_missing
            _log.info("whitelist.default", path=str(path), commands=sorted(when_missing.entries))
        else:
            self._whitelist = _read(path, guarded=guarded)

    def current(self) -> Whitelist:
        """Returns the whitelist in force, reading the file again if it is another one than before. Blocks briefly.

        A file that is broken or gone keeps the one in force, and is logged once.
        """
        identity = _identity(self._path)
        if identity != self._seen:
            self._seen = identity
            try:
                self._whitelist = _read(self._path, guarded=self._guarded)
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
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def open_whitelist(path: Path, *, guarded: bool = False) -> WhitelistFile:
    """The whitelist in a file, or the default one where nobody has put a file in the default place. Blocks.

    Raises:
        WhitelistInvalid: as ``WhitelistFile``.
    """
    when_missing = DEFAULT_WHITELIST if path == DEFAULT_WHITELIST_FILE else None
    return WhitelistFile(path, when_missing=when_missing, guarded=guarded)


def _read(path: Path, *, guarded: bool) -> Whitelist:
    try:
        # A FIFO would block at open, a device might never end.
        if path.exists() and not path.is_file():
            raise WhitelistInvalid((Problem(entry="", message="not a regular file"),))
        with path.open("rb") as file:
            if guarded:
                _demand_guarded(path, os.fstat(file.fileno()))
                _demand_guarded(path.parent, path.parent.stat())
            return parse_whitelist(file.read(MAX_FILE_BYTES + 1))
    except OSError as error:
        raise WhitelistInvalid((Problem(entry="", message=f"cannot be read: {error.strerror}"),)) from error


def _demand_guarded(path: Path, found: os.stat_result) -> None:
    """Whoever can write the whitelist decides what runs with the launcher's rights.

    Raises:
        WhitelistInvalid: somebody else can.
    """
    # A directory that everybody may write in, but in which nobody can replace another's file (sticky(7)), will do.
    shared = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
    others_write = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not shared
    if others_write or found.st_uid not in (0, os.geteuid()):
        mode = f"mode {stat.S_IMODE(found.st_mode):04o}, user {found.st_uid}"
        message = f"others than root can write {path} ({mode}): chown root and chmod go-w"
        raise WhitelistInvalid((Problem(entry="", message=message),))
