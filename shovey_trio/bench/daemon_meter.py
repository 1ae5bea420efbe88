"""What the daemon costs while something is measured: CPU, memory and stalls of its loop, seen from outside."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shovey_trio.bench.figures import Bar, Figure, figure
from shovey_trio.bench.footprint_meter import cpu_seconds

_KIB: Final = 1024
#: Stalls of the loop above this are seen; shorter ones count as none.
STALLS_SEEN: Final = 0.05


@dataclass(slots=True)
class DaemonCost:
    """Filled when the measured block ends.

    Attributes:
        cpu: seconds, user and system, all threads.
        peak: bytes, the largest resident memory meanwhile.
        stall: seconds, the longest stall of the main loop; 0 when none was above ``STALLS_SEEN``.
    """

    cpu: float = 0.0
    peak: int = 0
    stall: float = 0.0


def cost_figures(
    name: str, cost: DaemonCost, *, each: str, count: float, memory: Bar | None = None, stall: Bar | None = None
) -> list[Figure]:
    """What was measured cost the daemon: CPU for each of ``count`` things, peak memory, longest stall.

    Args:
        name: what was measured.
        cost: of all of it.
        each: what there were ``count`` of.
        count: not 0.
        memory: bar of the memory, MiB.
        stall: bar of the stall, seconds.
    """
    return [
        figure(f"{name}: daemon CPU per {each}", [cost.cpu / count]),
        figure(f"{name}: daemon memory, peak", [cost.peak / _KIB**2], unit="MiB", bar=memory),
        figure(f"{name}: longest stall", [cost.stall], bar=stall),
    ]


class DaemonMeter:
    """Reads ``/proc`` and the log of one daemon process (its log must be JSON, with stalls logged)."""

    def __init__(self, pid: int, log: Path) -> None:
        self._pid = pid
        self._process = Path("/proc") / str(pid)
        self._log = log

    @contextmanager
    def measuring(self) -> Iterator[DaemonCost]:
        """Measures the block."""
        cost = DaemonCost()
        # Resets the high-water mark to what is resident now (proc(5), clear_refs).
        (self._process / "clear_refs").write_text("5", encoding="ascii")
        offset = self._log.stat().st_size
        before = cpu_seconds([self._pid])
        yield cost
        cost.cpu = cpu_seconds([self._pid]) - before
        cost.peak = self._status("VmHWM")
        cost.stall = self._longest_stall(offset)

    def resident(self) -> int:
        """Bytes of memory that are resident now."""
        return self._status("VmRSS")

    def _status(self, name: str) -> int:
        for line in (self._process / "status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * _KIB
        raise KeyError(name)

    def _longest_stall(self, offset: int) -> float:
        with self._log.open("rb") as log:
            log.seek(offset)
            stalls = [json.loads(line)["seconds"] for line in log if b'"loop.stalled"' in line]
        return max(stalls, default=0.0)
