"""Private keys and certificate requests: made where the key lives, checked where the certificate is issued.

Keys are ECDSA P-256, because grpcio's TLS takes no Ed25519 (docs/architecture.md, "Trust"). A request proves that its
sender has the key and says nothing else: the issuer takes the key and ignores subject and extensions.
"""

from __future__ import annotations

from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from shovey_trio.core.errors import Code, Exit, InvalidCertificateRequest, ShoveyError
from shovey_trio.core.trust.x509_errors import UNREADABLE

#: A request of ours has about 250 bytes; nobody needs a parser to read more.
MAX_REQUEST_BYTES: Final = 8 * 1024


class KeyUnreadable(ShoveyError):
    """A private key does not parse or is not an ECDSA P-256 key."""

    reason, code, http, exit = "KEY_UNREADABLE", Code.FAILED_PRECONDITION, 500, Exit.USAGE


def make_private_key() -> ec.EllipticCurvePrivateKey:
    """A new ECDSA P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def private_key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The key as unencrypted PKCS#8 PEM; its file is the protection (``files.write_secret``)."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def load_private_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Reads what ``private_key_pem`` wrote.

    Raises:
        KeyUnreadable: garbage, encrypted, or of another kind.
    """
    try:
        key = load_pem_private_key(pem, password=None)
    except UNREADABLE as exc:
        raise KeyUnreadable("the private key is not unencrypted PEM") from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise KeyUnreadable("the private key is not ECDSA P-256")
    return key


def make_request(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A certificate request (PKCS#10, DER) that proves possession of ``key``."""
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.DER)
    )


def read_request(der: bytes) -> ec.EllipticCurvePublicKey:
    """The key of a certificate request, after its signature was checked.

    Raises:
        InvalidCertificateRequest: too large, garbage, signed by another key, or a key of another kind.
    """
    if len(der) > MAX_REQUEST_BYTES:
        raise InvalidCertificateRequest(f"the certificate request has more than {MAX_REQUEST_BYTES} bytes")
    try:
        request = x509.load_der_x509_csr(der)
        key = request.public_key()
        genuine = request.is_signature_valid
    except (*UNREADABLE, InvalidSignature) as exc:
        raise InvalidCertificateRequest("the certificate request does not parse") from exc
    if not genuine:
        raise InvalidCertificateRequest("the certificate request is not signed by its own key")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidCertificateRequest("the key of a certificate request must be ECDSA P-256")
    return key
