"""Signing and verifying orders: Ed25519 over a domain string and the order's exact bytes.

The domain string keeps a signature made for one purpose from being valid for another (RFC 8032 has contexts for
this, Ed25519 in cryptography does not expose them). Signing is over bytes, never over a re-serialized message, so
canonical form is the signer's business alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from shovey_trio.core.orders import RefusalReason, SignedOrder

ORDER_DOMAIN = b"shovey-trio/order/1\x00"
PUBLIC_KEY_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """An organization's private signing key and its short name."""

    key_id: str
    private_key: Ed25519PrivateKey
    created_at: float

    @property
    def public_bytes(self) -> bytes:
        return self.private_key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicKey:
    """A public signing key as nodes and clients know it."""

    key_id: str
    public_bytes: bytes
    created_at: float
    active: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySet:
    """The keys an organization's orders may be signed with; ``serial`` grows with every change."""

    organization: str
    serial: int
    keys: tuple[PublicKey, ...]

    def by_id(self) -> Mapping[str, PublicKey]:
        return {key.key_id: key for key in self.keys}


def key_id_of(public_bytes: bytes) -> str:
    """The short name of a public key: the first 8 bytes of its SHA-256, in hex."""
    return hashlib.sha256(public_bytes).hexdigest()[:16]


def sign_order(order: bytes, key: SigningKey) -> SignedOrder:
    """Signs the order's bytes."""
    return SignedOrder(order=order, signature=key.private_key.sign(ORDER_DOMAIN + order), key_id=key.key_id)


def verify_order(signed: SignedOrder, keys: Mapping[str, PublicKey]) -> RefusalReason | None:
    """Why the signature does not hold, or None when it does. Nothing of the order has been parsed yet."""
    key = keys.get(signed.key_id)
    if key is None:
        return RefusalReason.UNKNOWN_KEY
    try:
        Ed25519PublicKey.from_public_bytes(key.public_bytes).verify(signed.signature, ORDER_DOMAIN + signed.order)
    except (InvalidSignature, ValueError):
        return RefusalReason.BAD_SIGNATURE
    return None
