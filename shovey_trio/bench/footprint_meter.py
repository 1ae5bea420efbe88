"""What a few processes take together – memory and CPU – as the kernel counts it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_KIB: Final = 1024
# CPUCLOCK_SCHED of the kernel's posix-timers.h.
_SCHEDULED: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Memory of some processes together, bytes.

    Attributes:
        resident: what each has resident, added up; pages that two of them have count twice.
        once: the same with every page of a file counted once, as if nobody else had it: what the processes would take
            on a machine of their own.
        proportional: each page divided by the number of all processes, strangers too, that have it (PSS).
        private: pages that nobody else has.
    """

    resident: int
    once: int
    proportional: int
    private: int


def process_tree(pid: int) -> list[int]:
    """A process with all its descendants."""
    found = [pid]
    for parent in found:  # grows while it is walked
        for thread in (_PROC / str(parent) / "task").iterdir():
            found += [int(child) for child in (thread / "children").read_text(encoding="ascii").split()]
    return found


def memory(pids: Iterable[int]) -> Memory:
    """Memory of these processes now."""
    resident = proportional = private = anonymous = 0
    files: dict[tuple[str, str], int] = {}
    for pid in pids:
        for mapping, sizes in _mappings(pid):
            resident += sizes["Rss"]
            proportional += sizes["Pss"]
            private += sizes["Private_Clean"] + sizes["Private_Dirty"]
            anonymous += sizes["Anonymous"]
            files[mapping] = max(files.get(mapping, 0), sizes["Rss"] - sizes["Anonymous"])
    return Memory(resident=resident, once=anonymous + sum(files.values()), proportional=proportional, private=private)


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU that these processes have used so far, ended threads included, to the nanosecond.

    ``stat`` counts ticks of 10 ms, as much as an idle agent needs in ten seconds.
    """
    # The CPU clock of another process: clock_getcpuclockid(3), which Python has for threads alone.
    return sum(time.clock_gettime((~pid << 3) | _SCHEDULED) for pid in pids)


def _mappings(pid: int) -> Iterator[tuple[tuple[str, str], dict[str, int]]]:
    """File and offset of each mapping (proc(5), smaps) with its sizes in bytes."""
    mapping, sizes = ("", ""), dict[str, int]()
    for line in (_PROC / str(pid) / "smaps").read_text("utf-8", "replace").splitlines():
        first, *rest = line.split(maxsplit=5)
        if not first.endswith(":"):
            if sizes:
                yield mapping, sizes
            mapping, sizes = (rest[4] if len(rest) > 4 else "", rest[1]), {}
        elif rest[-1] == "kB":
            sizes[first[:-1]] = int(rest[0]) * _KIB
    if sizes:
        yield mapping, sizes
