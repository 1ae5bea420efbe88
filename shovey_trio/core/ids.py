"""Identifiers, as pure functions of time and random bytes."""

from __future__ import annotations

import uuid

_UUID7_RANDOM_BYTES = 10


def job_id(now: float, random_bytes: bytes) -> str:
    """A UUIDv7 (RFC 9562 section 5.7): 36 characters, sorted by time to the millisecond.

    knife-shove takes the last 36 characters of the job's URI as its id, hence a UUID.

    Args:
        now: unix seconds.
        random_bytes: exactly 10 bytes of randomness.
    """
    if len(random_bytes) != _UUID7_RANDOM_BYTES:
        raise ValueError("a UUIDv7 takes 10 random bytes")
    value = (int(now * 1000) & (2**48 - 1)) << 80 | int.from_bytes(random_bytes, "big")
    value = value & ~(0xF << 76) | 7 << 76  # version
    value = value & ~(0x3 << 62) | 2 << 62  # variant
    return str(uuid.UUID(int=value))


def run_id(job: str, node: str) -> str:
    """The run of one node in one job: a UUIDv5, so that both sides derive the same and nothing is stored twice."""
    return str(uuid.uuid5(uuid.UUID(job), node))


def is_uuid(text: str) -> bool:
    """Whether ``text`` is a UUID in its canonical 36-character form (a client may send anything as an id)."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
