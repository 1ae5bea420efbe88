"""Noticing that files of a controller were changed: nobody should have to send a signal for a revoked key to be one.

Looked at once a second, by number, time and size of each file. Asking the kernel (inotify) would be quicker and knows
nothing of network file systems; a second is what a revocation may take.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

import structlog
import trio

from shovey_trio.identity.layout import DataDirectory
from shovey_trio.observe.threads import run_in_thread

_log = structlog.get_logger(__name__)
_TICK: Final = 1.0
#: How long a reload that has failed is put off at most, in seconds; then it is tried again.
_LONGEST_PAUSE: Final = 30.0

Marks = tuple[tuple[str, int, int, int], ...]


def watched_files(directory: DataDirectory) -> Sequence[Path]:
    """What a running controller reads again when it changes: keys, certificates, and the mark of offline commands.

    Proposals hold no keys in force; what old nodes hold is written by the daemon itself all the time.
    """
    signing = directory.signing_keys("x").parent
    keys = [path for path in signing.glob("*.json") if path.suffixes == [".json"]]
    pairs = (directory.control, directory.enroll)
    return (
        *sorted(keys),
        directory.ca_certificate,
        directory.ca_key,
        *(file for pair in pairs for file in (pair.certificate, pair.key)),
        directory.changed,
    )


def marks(directory: DataDirectory) -> Marks:
    """How the watched files are now; another value when one of them has changed. Blocks."""
    found = []
    for path in watched_files(directory):
        try:
            status = path.stat()
        except OSError:
            continue
        found.append((str(path), status.st_ino, status.st_mtime_ns, status.st_size))
    return tuple(found)


async def reload_on_change(directory: DataDirectory, reload: Callable[[], Awaitable[bool]], *, seen: Marks) -> None:
    """Calls ``reload`` whenever a watched file has changed; until cancelled.

    Args:
        directory: where the files are.
        reload: reads them, and says whether all of them could be used; when not, it is called again, later and later,
            because the cause may be one that no file shows (a store that cannot be read, a disk that is full).
        seen: how they were when they were last read.
    """
    pause = _TICK
    good = True
    while True:
        await trio.sleep(pause)
        now = await run_in_thread(marks, directory)
        if now == seen and good:
            continue
        _log.info("controller.files_changed" if now != seen else "controller.reload_again")
        pause = _TICK if now != seen else min(2 * pause, _LONGEST_PAUSE)
        seen = now
        good = await reload()
        pause = _TICK if good else pause
