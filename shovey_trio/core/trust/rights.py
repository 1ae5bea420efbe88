"""Who may do what, as kept beside the store: what was taken from somebody stays taken when an older copy is put back.

A signed document of its own, by the key that signs heads of the audit log, under its own domain string.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shovey_trio.core.audit.records import AuditBroken, canonical_json
from shovey_trio.core.chef.principals import ChefPrincipal, ChefPrincipalKind
from shovey_trio.core.jobs.model import Grant, Role, User

RIGHTS_DOMAIN: Final = b"shovey-trio/rights/1\x00"

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokedCertificate:
    """A certificate that is void; ``subject`` is its principal's label."""

    serial: str
    organization: str
    subject: str
    expires_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rights:
    """Everything that decides who may do what, but for keys and nodes."""

    revoked: tuple[RevokedCertificate, ...] = ()
    users: tuple[User, ...] = ()
    grants: tuple[Grant, ...] = ()
    chef_principals: tuple[ChefPrincipal, ...] = ()


def encode_rights(rights: Rights, key: Ed25519PrivateKey) -> bytes:
    """The signed document; ``decode_rights`` reads it."""
    said = asdict(rights)
    return canonical_json({"rights": said, "signature": b64encode(key.sign(_signed_bytes(said))).decode()}).encode()


def decode_rights(data: bytes, key: Ed25519PublicKey) -> Rights:
    """Reads and verifies what ``encode_rights`` has made.

    Raises:
        AuditBroken: it cannot be read, or was changed.
    """
    try:
        fields = json.loads(data)
        said = fields["rights"]
        key.verify(b64decode(fields["signature"], validate=True), _signed_bytes(said))
        return Rights(
            revoked=_each(said, "revoked", RevokedCertificate),
            users=_each(said, "users", User, role=Role),
            grants=_each(said, "grants", Grant),
            chef_principals=_each(said, "chef_principals", ChefPrincipal, role=Role, kind=ChefPrincipalKind),
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        raise AuditBroken("the kept rights cannot be read") from None
    except InvalidSignature:
        raise AuditBroken("the kept rights were changed, or another key signed them") from None


def _each(said: Mapping[str, Any], name: str, of: type[T], **words: Callable[[str], Any]) -> tuple[T, ...]:
    return tuple(
        of(**{**fields, **{word: read(fields[word]) for word, read in words.items()}}) for fields in said[name]
    )


def _signed_bytes(said: Mapping[str, Any]) -> bytes:
    return RIGHTS_DOMAIN + canonical_json(said).encode()
