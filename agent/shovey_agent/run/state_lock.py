"""One agent per state directory: two would each know half of the nonces, and bury the other's runs as lost."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shovey_trio.core.errors import Code, Exit, ShoveyError

_LOCK = "agent.lock"


class StateDirectoryTaken(ShoveyError):
    """Another agent works in the state directory."""

    reason, code, http, exit = "STATE_DIRECTORY_TAKEN", Code.FAILED_PRECONDITION, 500, Exit.USAGE


@contextmanager
def hold_state_directory(directory: Path) -> Iterator[None]:
    """Holds the directory for this process; the kernel gives it back when the process ends, however it ends.

    Raises:
        StateDirectoryTaken: the message says which process has it.
        OSError: the lock's file cannot be opened.
    """
    descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 64).decode("ascii", "replace").strip() or "unknown"
            raise StateDirectoryTaken(
                f"another agent works in {directory}: process {holder}; stop it, or give this one a state directory"
                " of its own"
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode("ascii"))
        yield
    finally:
        os.close(descriptor)
