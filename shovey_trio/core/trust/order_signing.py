"""Signing and verifying orders: Ed25519 over a domain string and the order's exact bytes.

The domain string keeps a signature made for one purpose from being valid for another (RFC 8032 has contexts for
this, Ed25519 in cryptography does not expose them). Signing is over bytes, never over a re-serialized message, so
canonical form is the signer's business alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from shovey_trio.core.trust.key_sets import PublicKey
from shovey_trio.core.trust.orders import RefusalReason, SignedOrder

ORDER_DOMAIN = b"shovey-trio/order/1\x00"


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """An organization's private signing key and its short name."""

    key_id: str
    private_key: Ed25519PrivateKey
    created_at: float

    @property
    def public_bytes(self) -> bytes:
        return self.private_key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


class OrderKeys(Protocol):
    """Who knows which keys may sign orders: a ``KeySet``, or what holds the latest one."""

    def find(self, key_id: str, now: float) -> PublicKey | RefusalReason:
        """See ``KeySet.find``."""


def sign_order(order: bytes, key: SigningKey) -> SignedOrder:
    """Signs the order's bytes."""
    return SignedOrder(order=order, signature=key.private_key.sign(ORDER_DOMAIN + order), key_id=key.key_id)


def verify_order(signed: SignedOrder, keys: OrderKeys, now: float) -> RefusalReason | None:
    """Why the signature does not hold, or None when it does. Nothing of the order has been parsed yet.

    Args:
        signed: as received.
        keys: which keys may sign orders.
        now: the controller's time as the node knows it, unix seconds.
    """
    key = keys.find(signed.key_id, now)
    if isinstance(key, RefusalReason):
        return key
    try:
        Ed25519PublicKey.from_public_bytes(key.public_bytes).verify(signed.signature, ORDER_DOMAIN + signed.order)
    except (InvalidSignature, ValueError):
        return RefusalReason.BAD_SIGNATURE
    return None
