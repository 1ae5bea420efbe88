"""Times and durations for people: local time, and how long ago."""

from __future__ import annotations

import time
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

_UNITS: Final = (("d", 86_400), ("h", 3600), ("m", 60))


def unix(at: Timestamp) -> float:
    """A message's time as unix seconds; 0 when it is absent."""
    return at.seconds + at.nanos / 1e9


def local_time(at: Timestamp) -> str:
    """Date and time where the reader is; empty when absent."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix(at))) if unix(at) else ""


def elapsed(seconds: float) -> str:
    """A duration in its two largest units: ``0.4s``, ``12s``, ``3m05s``, ``2h10m``, ``4d01h``."""
    if seconds < 10:
        return f"{max(seconds, 0.0):.1f}s"
    whole = int(seconds)
    for (unit, size), (smaller, smaller_size) in zip(_UNITS, (*_UNITS[1:], ("s", 1)), strict=True):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // smaller_size:02d}{smaller}"
    return f"{whole}s"


def age(at: Timestamp, *, now: float) -> str:
    """How long ago, as ``3m05s ago``; empty when absent."""
    return f"{elapsed(now - unix(at))} ago" if unix(at) else ""
