"""What a node believes of its controller's keys, and what it takes to change that.

Rules, from the strongest:

* A node that has a root key believes key sets that this root signed, of its own organization, with a serial not below
  the one it has; nothing else, whoever says it. The root itself never changes, but by enrolling again.
* A node without one (enrolled before there were root keys) takes the first root that its controller presents together
  with a set which that root signed: trust on first use, over a stream that mutual TLS vouches for.
* Without any root, as before: the set with the highest serial, on the word of mutual TLS alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from shovey_trio.core.trust.key_sets import (
    KeySet,
    KeySetRefusal,
    KeySetRefused,
    PublicKey,
    encode_key_set,
    verify_key_set,
)
from shovey_trio.core.trust.orders import RefusalReason


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedKeys:
    """What a controller says of its keys; nothing of it is believed before ``KeyTrust.learned``.

    Attributes:
        keys: the set in plain, for who has no root key.
        signed: the same, signed by the root key (``core.trust.key_sets``); empty from a controller without one.
        root_public_key: 32 bytes; empty from a controller without one.
    """

    keys: KeySet
    signed: bytes = b""
    root_public_key: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyTrust:
    """What a node believes. Implements ``core.trust.order_signing.OrderKeys``.

    Attributes:
        organization: the node's.
        keys: the set in force; None before the first.
        signed: the same, signed by the root; empty without a root.
        root_public_key: empty without a root.
    """

    organization: str
    keys: KeySet | None = None
    signed: bytes = b""
    root_public_key: bytes = b""

    @property
    def serial(self) -> int:
        return 0 if self.keys is None else self.keys.serial

    def find(self, key_id: str, now: float) -> PublicKey | RefusalReason:
        """See ``KeySet.find``."""
        return RefusalReason.UNKNOWN_KEY if self.keys is None else self.keys.find(key_id, now)

    def usable(self, now: float) -> tuple[PublicKey, ...]:
        """See ``KeySet.usable``."""
        return () if self.keys is None else self.keys.usable(now)

    def learned(self, offered: PublishedKeys) -> KeyTrust:
        """What the node believes after it heard this; itself when that is nothing new.

        Raises:
            KeySetRefused: it is not believed, and what was believed before stays.
        """
        root = self.root_public_key or offered.root_public_key
        if not root:
            return self._learned_in_plain(offered.keys)
        if not offered.signed:
            raise KeySetRefused(KeySetRefusal.WRONG_ROOT, "the key set is not signed by the organization's root")
        keys = verify_key_set(offered.signed, root, self.organization, self.serial)
        if self.root_public_key and keys.serial == self.serial and offered.signed != self.signed:
            # Two sets of one serial: which of them holds must not depend on who talks last.
            raise KeySetRefused(KeySetRefusal.OLD_SERIAL, f"another key set with serial {keys.serial} is known already")
        if root == self.root_public_key and offered.signed == self.signed:
            return self
        return replace(self, keys=keys, signed=offered.signed, root_public_key=root)

    def _learned_in_plain(self, keys: KeySet) -> KeyTrust:
        if keys.organization != self.organization:
            raise KeySetRefused(
                KeySetRefusal.OTHER_ORGANIZATION, f"the keys are {keys.organization!r}'s, not {self.organization!r}'s"
            )
        try:
            encode_key_set(keys)
        except ValueError as exc:
            raise KeySetRefused(KeySetRefusal.MALFORMED, f"not a key set ({exc})") from exc
        return self if keys.serial <= self.serial else replace(self, keys=keys)
