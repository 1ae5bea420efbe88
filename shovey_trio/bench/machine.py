"""What a figure depends on beside the code: the machine, its load, the versions. For the head of every result."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from shovey_trio import __version__

_PACKAGES = ("grpcio", "trio", "trio-asyncio", "protobuf", "cryptography", "sqlalchemy")
_KIB = 1024


def machine() -> dict[str, Any]:
    """The machine as it is now; values are plain."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // _KIB**2,
        "system": f"{platform.system()} {platform.release()}",
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "shovey-trio": __version__,
        **{name: metadata.version(name) for name in _PACKAGES},
    }


def head(facts: dict[str, Any]) -> str:
    """One line of it for people."""
    return (
        f"{facts['processor']}, {facts['cores']} cores, {facts['memory_mib']:,} MiB, load {facts['load']}; "
        f"{facts['system']}; Python {facts['python']}, grpcio {facts['grpcio']}, trio {facts['trio']}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
