"""How often an address may fail to prove who is there: two allowances, both in bounded memory.

* One for an address and the name that was claimed there, so that one node with a wrong key shuts out itself and not
  its neighbours behind the same address.
* Ten times as much for the address, so that a new name for every attempt is of no use.

Only failures use an allowance up; it grows back over a minute. The least recently seen is forgotten first: whoever has
as many addresses as are remembered can make theirs forgotten, and is held by the limits on all callers together.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Final

#: An address has this many times what a name at it has.
NAMES_PER_ADDRESS: Final = 10
# 8,192 × ~200 bytes = 1.6 MB when full.
REMEMBERED: Final = 8_192
_MINUTE: Final = 60.0
_HOST_BITS: Final = 64
_NAME: Final = 128

Key = tuple[str, str | None]


class AttemptLimits:
    """Allowances of failures.

    Args:
        per_minute: failures of one name at one address; as many at once when there were none before.
        per_address: those of all names there; None for ten times as many.
    """

    def __init__(self, per_minute: int, per_address: int | None = None) -> None:
        self._per_minute = per_minute
        self._per_address = per_minute * NAMES_PER_ADDRESS if per_address is None else per_address
        # What is left, and when that was.
        self._left: OrderedDict[Key, tuple[float, float]] = OrderedDict()

    def wait(self, address: str, name: str, now: float) -> int:
        """Whole seconds until the next attempt may be made; 0 for now."""
        return max(self._wait(key, now) for key in _keys(address, name))

    def failed(self, address: str, name: str, now: float) -> None:
        """Takes one failure off both allowances."""
        for key in _keys(address, name):
            self._left[key] = (max(self._now_left(key, now) - 1, 0.0), now)
            self._left.move_to_end(key)
        while len(self._left) > REMEMBERED:
            self._left.popitem(last=False)

    def _wait(self, key: Key, now: float) -> int:
        missing = 1 - self._now_left(key, now)
        return max(0, math.ceil(missing * _MINUTE / self._allowance(key)))

    def _now_left(self, key: Key, now: float) -> float:
        allowance = self._allowance(key)
        left, at = self._left.get(key, (float(allowance), now))
        if now < at:
            # The clock was set back: what is left counts from here on, or nothing would grow until it has caught up.
            self._left[key] = (left, now)
            return left
        return min(float(allowance), left + (now - at) * allowance / _MINUTE)

    def _allowance(self, key: Key) -> int:
        return self._per_address if key[1] is None else self._per_minute


def _keys(address: str, name: str) -> tuple[Key, Key]:
    network = host_of(address)
    return (network, name[:_NAME]), (network, None)


@lru_cache(maxsize=4096)
def host_of(address: str) -> str:
    """What stands for one host: an IPv4 address, or the first half of an IPv6 address, which every host has whole."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address[:_NAME]
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(IPv6Address(int(parsed) >> _HOST_BITS << _HOST_BITS))
    return str(parsed)
