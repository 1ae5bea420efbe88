"""Signed heads: what a controller says that its audit log held, so that a missing end is found.

The key is the controller's audit key (Ed25519), which signs nothing else. Whoever has it and the store can write
another log; therefore a head is worth most where neither is: in the journal that is shipped, or in an export.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shovey_trio.core.audit.records import AuditBroken, AuditHead, parse_head
from shovey_trio.core.errors import InvalidRequest

HEAD_DOMAIN: Final = b"shovey-trio/audit-head/1\x00"


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedHead:
    """A head with the time it was signed at."""

    head: AuditHead
    at: float
    signature: bytes


def sign_head(head: AuditHead, at: float, key: Ed25519PrivateKey) -> SignedHead:
    """Signs a head."""
    return SignedHead(head=head, at=at, signature=key.sign(_signed_bytes(head, at)))


def encode_head(signed: SignedHead) -> str:
    """One line of JSON; ``decode_head`` reads it."""
    fields = {"head": str(signed.head), "at": signed.at, "signature": b64encode(signed.signature).decode("ascii")}
    return json.dumps(fields, sort_keys=True) + "\n"


def decode_head(text: str, key: Ed25519PublicKey) -> SignedHead:
    """Reads and verifies a signed head.

    Raises:
        AuditBroken: it is none, or the signature does not hold.
    """
    try:
        fields = json.loads(text)
        signed = SignedHead(
            head=parse_head(fields["head"]),
            at=float(fields["at"]),
            signature=b64decode(fields["signature"], validate=True),
        )
        key.verify(signed.signature, _signed_bytes(signed.head, signed.at))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, InvalidRequest):
        raise AuditBroken("the signed head cannot be read") from None
    except InvalidSignature:
        raise AuditBroken("the signed head was changed, or another key signed it") from None
    return signed


def _signed_bytes(head: AuditHead, at: float) -> bytes:
    return HEAD_DOMAIN + f"{head} {at!r}".encode("ascii")
