"""The whitelist of test fleets: small commands with one property each."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Final

ALL_BYTES: Final = bytes(range(256))


def _python(program: str, *arguments: str) -> dict[str, object]:
    return {"argv": [sys.executable, "-I", "-S", "-c", program, *arguments]}


def _shell(script: str) -> dict[str, object]:
    return {"argv": ["/bin/sh", "-c", script]}


def commands(directory: str) -> Mapping[str, object]:
    """Name → entry.

    * ``true``; ``hello``: a line on each stream.
    * ``bytes``: every byte there is, on stdout, and backwards on stderr.
    * ``web-3-fails``: exit code 3 there, 0 elsewhere; ``signal``: killed by its own SIGUSR1.
    * ``sleep``: a minute. ``stubborn``: prints its pid and that of a child in a session of its own, ignores TERM, and
      goes on for ever.
    * ``once``: appends a line to ``NODE.once`` in ``directory``.
    * ``held``: prints ``began``, appends to ``NODE.held``, waits for the file ``go`` in ``directory``, prints 1,000
      numbered lines, ends with 7.
    * ``flood``: 8 MiB of numbered lines of 16 bytes.
    """
    held = (
        f"echo began; echo x >>{directory}/$SHOVEY_NODE.held; while [ ! -e {directory}/go ]; do sleep 0.05; done; "
        "i=0; while [ $i -lt 1000 ]; do echo line $i; i=$((i+1)); done; exit 7"
    )
    return {
        "true": "true",
        "hello": _shell("echo to stdout; echo to stderr >&2"),
        "bytes": _python(
            "import os; data = bytes(range(256)); os.write(1, data); os.write(2, data[::-1])",
        ),
        "web-3-fails": _shell("[ $SHOVEY_NODE != web-3 ] || exit 3"),
        "signal": _shell("kill -USR1 $$"),
        "sleep": "sleep 60",
        "stubborn": _shell('trap "" TERM; setsid sleep 600 & echo $$ $!; while :; do sleep 0.2; done'),
        "once": _shell(f"echo ran >>{directory}/$SHOVEY_NODE.once"),
        "held": _shell(held),
        "flood": _python("for n in range(524288): print(f'{n:015d}')"),
    }
