"""Gives back to the machine what only starting has needed.

Two thirds of the code that the libraries map – grpc, cryptography, the interpreter – run while they are loaded and
set up, or come along because the kernel maps sixteen pages where one is wanted, and then stay resident for as long as
the agent lives. Pages of files that nothing has changed can be dropped at any time: what is used again comes back from
the page cache.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import structlog
import trio

from shovey_trio.observe.threads import run_in_thread

_log = structlog.get_logger(__name__)
_SMAPS: Final = Path("/proc/self/smaps")
# Seconds after which the first stream is open, or is being waited for.
_STARTED: Final = 2.0


async def settle_memory() -> None:
    """Once this process has started: looks for garbage a last time among what stays, and drops unused pages of code."""
    await trio.sleep(_STARTED)
    gc.collect()
    gc.freeze()
    try:
        dropped = await run_in_thread(drop_file_pages)
    except OSError as error:
        _log.debug("memory.not_settled", error=str(error))
    else:
        _log.debug("memory.settled", dropped=dropped)


def drop_file_pages() -> int:
    """Drops the resident pages of all mapped files that hold nothing but the file's own bytes; blocking.

    Returns:
        How many bytes were resident.

    Raises:
        OSError: this is not Linux, or its /proc is not there.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    dropped = 0
    for start, end, resident in list(_unchanged_mappings()):
        if libc.madvise(start, end - start, mmap.MADV_DONTNEED) == 0:  # it fails for locked memory, which then stays
            dropped += resident
    return dropped


def _unchanged_mappings() -> Iterator[tuple[int, int, int]]:
    """Start, end and resident bytes of each mapping of a file that nobody can write through and nobody has changed.

    What the loader has relocated is not writable either, but it is the process's own (``Anonymous``): dropping that
    would bring the file's bytes back in its place.
    """
    start = end = resident = 0
    read_only_file = False
    for line in _SMAPS.read_bytes().splitlines():
        match line.split(maxsplit=5):
            case [b"Rss:", kib, *_]:
                resident = int(kib) * 1024
            case [b"Anonymous:", kib, *_] if read_only_file and resident and int(kib) == 0:
                yield start, end, resident
            case [span, modes, _, _, _, path] if b"-" in span and not span.endswith(b":"):
                start, end = (int(address, 16) for address in span.split(b"-"))
                read_only_file = b"w" not in modes and modes.endswith(b"p") and path.startswith(os.fsencode(os.sep))
            case [span, *_] if b"-" in span and not span.endswith(b":"):
                read_only_file = False
