"""A wall clock that a test can set for one process: Python imports this at its start where ``environment`` says so.

``time.time`` is ahead by the seconds that stand in a file, and the file may change at any time. The clocks that nobody
can set, those of C libraries and the logs' stay as they are; so does what grpc counts deadlines by, which compares with
a clock of its own.
"""

from __future__ import annotations

import os
import sys
import time

VARIABLE = "SHOVEY_LAB_CLOCK"
_TRUE = ("grpc", "shovey_trio.rpc.bridge")


def _install(file: str) -> None:
    true_time = time.time
    read: tuple[int, float] = (0, 0.0)

    def settable() -> float:
        nonlocal read
        if sys._getframe(1).f_globals.get("__name__", "").startswith(_TRUE):
            return true_time()
        try:
            changed = os.stat(file).st_mtime_ns
            if changed != read[0]:
                with open(file, encoding="ascii") as text:
                    read = changed, float(text.read())
        except OSError:
            return true_time()
        return true_time() + read[1]

    time.time = settable


if VARIABLE in os.environ:
    _install(os.environ[VARIABLE])
