"""Believing a certificate outside TLS: Renew is served without client certificates, so the proof is in the request.

An agent whose certificate has expired cannot open a mutual TLS connection any more. It may still exchange the
certificate for a fresh one for 90 days, if it proves that it has the key and nobody revoked the certificate. The proof
signs the new request, so it cannot be moved to another one, under a domain string of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from shovey_trio.core.errors import Unauthenticated
from shovey_trio.core.trust.orders import MAX_CLOCK_SKEW
from shovey_trio.core.trust.x509_errors import UNREADABLE
from shovey_trio.identity.authority import DAY, CertificateUnreadable, issued_by, read_certificates, serial_of
from shovey_trio.identity.names import Identity, parse_identity
from shovey_trio.identity.requests import read_request

RENEW_DOMAIN: Final = b"shovey-trio/renew/1\x00"
#: How long after its end an unrevoked certificate may still be exchanged for a fresh one.
RENEWAL_GRACE: Final = 90 * DAY
#: A chain of ours has about 1,300 bytes.
MAX_CERTIFICATE_BYTES: Final = 16 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedCertificate:
    """A client certificate that this installation issued and has not revoked."""

    identity: Identity
    serial: str
    expires_at: float
    public_key: ec.EllipticCurvePublicKey


def prove_possession(old_key: ec.EllipticCurvePrivateKey, csr: bytes) -> bytes:
    """The proof of RenewRequest: the old key's ECDSA-SHA256 signature (DER) over the domain string and ``csr``."""
    return old_key.sign(RENEW_DOMAIN + csr, ec.ECDSA(hashes.SHA256()))


def verify_renewal(
    *,
    certificate: bytes,
    csr: bytes,
    proof: bytes,
    authorities: Sequence[x509.Certificate],
    revoked: Collection[str],
    now: float,
) -> VerifiedCertificate:
    """Who asks for a renewal.

    Args:
        certificate: PEM of the certificate to renew; issuers after it are ignored.
        csr: the new request, PKCS#10 DER.
        proof: see ``prove_possession``.
        authorities: the certificates of this installation's CAs.
        revoked: serials, as ``serial_of`` writes them.
        now: unix seconds.

    Raises:
        Unauthenticated: the certificate or the proof does not hold; ``cause`` says why, for the log.
        InvalidCertificateRequest: the request is bad.
    """
    verified = verify_certificate(certificate, authorities=authorities, revoked=revoked, now=now, grace=RENEWAL_GRACE)
    try:
        verified.public_key.verify(proof, RENEW_DOMAIN + csr, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as exc:
        raise Unauthenticated("the renewal is not signed by the certificate's key", cause="bad_proof") from exc
    read_request(csr)
    return verified


def verify_certificate(
    pem: bytes,
    *,
    authorities: Sequence[x509.Certificate],
    revoked: Collection[str],
    now: float,
    grace: float = 0.0,
) -> VerifiedCertificate:
    """Whether one of ``authorities`` issued this client certificate and it still holds.

    Args:
        pem: the certificate, first of the file.
        authorities: the certificates of this installation's CAs.
        revoked: serials, as ``serial_of`` writes them.
        now: unix seconds.
        grace: seconds that it may have been expired.

    Raises:
        Unauthenticated: ``cause`` is one of ``unreadable``, ``not_ours``, ``not_a_client``, ``revoked``,
            ``not_yet_valid``, ``expired``, or absent when the identity in it is malformed.
    """
    if len(pem) > MAX_CERTIFICATE_BYTES:
        raise Unauthenticated("the certificate is too large", cause="unreadable")
    try:
        leaf = read_certificates(pem)[0]
        key, extensions = leaf.public_key(), leaf.extensions
    except (CertificateUnreadable, *UNREADABLE) as exc:
        raise Unauthenticated("the certificate does not parse", cause="unreadable") from exc
    if not isinstance(key, ec.EllipticCurvePublicKey) or not any(issued_by(leaf, ca) for ca in authorities):
        raise Unauthenticated("the certificate was not issued here", cause="not_ours")
    # From here on the contents are our own CA's word. Its own certificate, self-signed, comes this far too.
    try:
        usages = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as exc:
        raise Unauthenticated("the certificate is not a client's", cause="not_a_client") from exc
    if ExtendedKeyUsageOID.CLIENT_AUTH not in usages:
        raise Unauthenticated("the certificate is not a client's", cause="not_a_client")
    serial, expires_at = serial_of(leaf), leaf.not_valid_after_utc.timestamp()
    if serial in revoked:
        raise Unauthenticated("the certificate is revoked", cause="revoked")
    if leaf.not_valid_before_utc.timestamp() > now + MAX_CLOCK_SKEW:
        raise Unauthenticated("the certificate is not valid yet", cause="not_yet_valid")
    if now > expires_at + grace:
        raise Unauthenticated("the certificate has expired", cause="expired")
    identity = parse_identity(names.get_values_for_type(x509.UniformResourceIdentifier))
    return VerifiedCertificate(identity=identity, serial=serial, expires_at=expires_at, public_key=key)
