"""The commands that fault tests run, and what each of them must come to when nothing but the system's parts fails.

Each appends its run's id to a ledger before it does anything else: the count of starts that no bookkeeping of ours can
get wrong. What it prints is a function of its run's id, so that a reader can tell a missing byte from a doubled one.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shovey_trio.v1 import job_pb2 as pb

LEDGER_VARIABLE = "LEDGER"
_CHATTER_LINES = 400
_NOTE_START = f'echo "$SHOVEY_RUN_ID" >> "${LEDGER_VARIABLE}"\n'


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A whitelisted command and its truth.

    Attributes:
        script: what /bin/sh runs behind the note in the ledger.
        exit_code: how it ends by itself; None when it never does.
        stdout: its output, with ``{run}`` for the run's id.
        stderr: the same.
    """

    script: str
    exit_code: int | None
    stdout: str = ""
    stderr: str = ""

    def expected_stdout(self, run_id: str) -> bytes:
        return self.stdout.replace("{run}", run_id).encode()

    def expected_stderr(self, run_id: str) -> bytes:
        return self.stderr.replace("{run}", run_id).encode()


COMMANDS: Mapping[str, Command] = {
    "quick": Command(script='echo "$SHOVEY_RUN_ID quick"', exit_code=0, stdout="{run} quick\n"),
    "fails": Command(script='echo "$SHOVEY_RUN_ID fails" >&2; exit 7', exit_code=7, stderr="{run} fails\n"),
    "chatter": Command(
        script=(
            f'i=0; while [ $i -lt {_CHATTER_LINES} ]; do echo "$SHOVEY_RUN_ID $i"; i=$((i+1));'
            " [ $((i % 40)) -ne 0 ] || sleep 0.1; done; exit 3"
        ),
        exit_code=3,
        stdout="".join(f"{{run}} {number}\n" for number in range(_CHATTER_LINES)),
    ),
    # Ignores TERM, and so does a grandchild that has left session and group.
    "hostile": Command(
        script="trap '' TERM; setsid sh -c 'sleep 600' & echo \"$SHOVEY_RUN_ID waits\"; sleep 600; sleep 600",
        exit_code=None,
        stdout="{run} waits\n",
    ),
}

# Forks faster than it can be looked at, ignores TERM and leaves its session. Bounded by itself: one process to a chain,
# and an end of its own.
_CHAINS = (
    "import os, signal, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "end = time.monotonic() + 30\n"
    "for _ in range(30):\n"
    "    if os.fork() == 0:\n"
    "        os.setsid()\n"
    "        while time.monotonic() < end:\n"
    "            if os.fork(): os._exit(0)\n"
    "            time.sleep(0.002)\n"
    "        os._exit(0)\n"
    "time.sleep(600)\n"
)
EVERY_COMMAND: Mapping[str, Command] = {
    **COMMANDS,
    "storm": Command(
        script=f"echo \"$SHOVEY_RUN_ID storms\"; exec '{sys.executable}' -I -S -c '{_CHAINS}'",
        exit_code=None,
        stdout="{run} storms\n",
    ),
}


def whitelist(ledger: Path) -> dict[str, object]:
    """The commands as entries of a whitelist."""
    return {
        name: {"argv": ["/bin/sh", "-c", _NOTE_START + command.script], "env": {LEDGER_VARIABLE: str(ledger)}}
        for name, command in EVERY_COMMAND.items()
    }


def starts(ledger: Path) -> Counter[str]:
    """How often each run was started."""
    try:
        return Counter(ledger.read_text("ascii").split())
    except FileNotFoundError:
        return Counter()


def survivors(run_ids: set[str]) -> dict[str, list[int]]:
    """The living processes of runs, by run: whoever carries the run's id in its environment. Reads all of /proc."""
    found: dict[str, list[int]] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            environment = Path(f"/proc/{name}/environ").read_bytes()
            state = Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()[0]
        except (OSError, IndexError):
            continue
        if state in b"ZXx":
            continue
        for word in environment.split(b"\0"):
            if word.startswith(b"SHOVEY_RUN_ID="):
                run_id = word.partition(b"=")[2].decode("ascii", "replace")
                if run_id in run_ids:
                    found.setdefault(run_id, []).append(int(name))
    return found


def ended_by_itself(state: pb.RunState.ValueType) -> bool:
    """Whether a terminal state is the command's own end."""
    return state in (pb.RUN_STATE_SUCCEEDED, pb.RUN_STATE_FAILED)
