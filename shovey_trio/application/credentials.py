"""What proves who somebody is: enrolment tokens are given out and certificates made void here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shovey_trio.application.audit import Actor
from shovey_trio.core.audit.records import AuditAction
from shovey_trio.core.errors import InvalidRequest, NotFound
from shovey_trio.core.trust.enrollment import DEFAULT_TOKEN_LIFETIME, MAX_TOKEN_LIFETIME, encode_token, token_digest
from shovey_trio.identity.names import Identity, node_identity
from shovey_trio.store.contract import CredentialStore


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrollmentToken:
    """A fresh one-time token; the only moment at which its text exists here."""

    token: str
    expires_at: float


async def open_enrollment(
    store: CredentialStore, actor: Actor, node: str, *, secret: bytes, valid_for: float | None = None
) -> EnrollmentToken:
    """A one-time token for one node name; only its hash is stored.

    Args:
        secret: 32 fresh random bytes.
        valid_for: seconds.

    Raises:
        InvalidRequest: the name or the time is not permitted.
    """
    identity = node_identity(actor.organization, node)
    lifetime = DEFAULT_TOKEN_LIFETIME if valid_for is None else valid_for
    if not 0 < lifetime <= MAX_TOKEN_LIFETIME:
        raise InvalidRequest("a token may be valid for up to 30 days", field="valid_for")
    made = EnrollmentToken(token=encode_token(secret), expires_at=actor.at + lifetime)
    await store.write_enrollment_token(
        digest=token_digest(made.token),
        organization=identity.organization,
        node=identity.name,
        expires_at=made.expires_at,
        audit=actor.entry(AuditAction.ENROLLMENT_OPENED, identity.label, expires_at=made.expires_at),
    )
    return made


async def revoke_certificates(store: CredentialStore, actor: Actor, identity: Identity) -> Sequence[str]:
    """Voids every certificate of a user or node; returns the serials.

    Raises:
        NotFound: there is none.
    """
    serials = await store.revoke_certificates(
        identity.organization, identity.label, audit=actor.entry(AuditAction.CERTIFICATES_REVOKED, identity.label)
    )
    if not serials:
        raise NotFound(f"{identity.label} has no certificate", name=identity.name)
    return serials
