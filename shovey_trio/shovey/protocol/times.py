"""Times as Shovey's clients read them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

NO_TIME: Final = "0001-01-01T00:00:00Z"


def fine_time(at: float | None) -> str:
    """``2026-11-22T03:45:56.869761Z``, without zeros at the end."""
    if at is None:
        return NO_TIME
    whole, _, fraction = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f").partition(".")
    digits = fraction.rstrip("0")
    return f"{whole}.{digits}Z" if digits else f"{whole}Z"


def coarse_time(at: float) -> str:
    """``2026-11-22T03:45:56Z``."""
    return datetime.fromtimestamp(int(at), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
