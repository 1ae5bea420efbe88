"""The installation's certificate authority: what it issues and what it still believes.

One self-signed CA (path length 0) signs leaf certificates of three kinds: nodes and users, which are clients and carry
their identity as a SAN URI (``names``), and the two listeners, which are servers and carry host names. Extended key
usage keeps the kinds apart, so a stolen node key can never serve as the controller.

Certificates are valid from a quarter of an hour before they are issued: a peer whose clock is as wrong as orders
tolerate must not refuse a new one.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shovey_trio.core.errors import Code, Exit, ShoveyError
from shovey_trio.core.trust.orders import MAX_CLOCK_SKEW
from shovey_trio.core.trust.x509_errors import UNREADABLE
from shovey_trio.identity.names import Identity, PrincipalKind
from shovey_trio.identity.requests import load_private_key, read_request

DAY: Final = 86_400.0
CA_LIFETIME: Final = 3_650 * DAY
NODE_LIFETIME: Final = 90 * DAY
USER_LIFETIME: Final = 365 * DAY
#: A listener's certificate is renewed by the daemon itself, which has the CA key at hand.
LISTENER_LIFETIME: Final = 365 * DAY
#: A client may check for this name whatever address it dials; every listener certificate has it.
INTERNAL_NAME: Final = "shovey-trio.internal"
#: Share of a certificate's life after which it is renewed.
_RENEW_AFTER: Final = 2 / 3


class CertificateUnreadable(ShoveyError):
    """A certificate file of this installation does not parse, or key and certificate do not belong together."""

    reason, code, http, exit = "CERTIFICATE_UNREADABLE", Code.FAILED_PRECONDITION, 500, Exit.USAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedCertificate:
    """A new certificate.

    Attributes:
        chain: PEM, the leaf followed by its issuer.
        serial: lower-case hex, without leading zeros.
        expires_at: unix seconds.
    """

    chain: bytes
    serial: str
    expires_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateAuthority:
    """The CA with its key. The key is never shown in ``repr``."""

    certificate: x509.Certificate
    private_key: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def from_pem(cls, certificate: bytes, private_key: bytes) -> CertificateAuthority:
        """Loads an authority; the first certificate of a bundle is the one that issues.

        Raises:
            CertificateUnreadable: the certificate does not parse, is no CA, or belongs to another key.
            KeyUnreadable: the key does not parse.
        """
        authority = cls(certificate=read_certificates(certificate)[0], private_key=load_private_key(private_key))
        if authority.certificate.public_key() != authority.private_key.public_key():
            raise CertificateUnreadable("the CA certificate belongs to another key")
        return authority

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def issue_client(self, *, csr: bytes, identity: Identity, now: float) -> IssuedCertificate:
        """A certificate for a node (90 days) or a user (365 days) with the key of ``csr`` (PKCS#10, DER).

        Nothing of the request but its key goes into the certificate.

        Raises:
            InvalidCertificateRequest: see ``requests.read_request``.
        """
        lifetime = NODE_LIFETIME if identity.kind is PrincipalKind.NODE else USER_LIFETIME
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity.uri)])
        return self._issue(
            read_request(csr),
            common_name=identity.label,
            names=names,
            usage=ExtendedKeyUsageOID.CLIENT_AUTH,
            now=now,
            lifetime=lifetime,
        )

    def issue_listener(self, *, csr: bytes, hosts: Iterable[str], now: float) -> IssuedCertificate:
        """A certificate for a listener that clients reach by any of ``hosts`` (names or addresses).

        Raises:
            InvalidCertificateRequest: see ``requests.read_request``.
            ValueError: a host is neither an address nor a DNS name in ASCII.
        """
        names = x509.SubjectAlternativeName([_general_name(host) for host in listener_hosts(hosts)])
        return self._issue(
            read_request(csr),
            common_name=INTERNAL_NAME,
            names=names,
            usage=ExtendedKeyUsageOID.SERVER_AUTH,
            now=now,
            lifetime=LISTENER_LIFETIME,
        )

    def _issue(
        self,
        key: ec.EllipticCurvePublicKey,
        *,
        common_name: str,
        names: x509.SubjectAlternativeName,
        usage: x509.ObjectIdentifier,
        now: float,
        lifetime: float,
    ) -> IssuedCertificate:
        # A leaf that outlives its issuer would be refused while it still looks valid to whoever decides on renewal.
        expires_at = min(float(int(now + lifetime)), self.certificate.not_valid_after_utc.timestamp())
        certificate = (
            x509.CertificateBuilder()
            # For people who look at it with openssl; a common name holds 64 characters (RFC 5280, ub-common-name).
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])]))
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(_moment(now - MAX_CLOCK_SKEW))
            .not_valid_after(_moment(expires_at))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            # Not critical: CA/Browser Forum profiles want it so, and strict verifiers hold everybody to them.
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(names, critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.private_key.public_key()), critical=False
            )
            .sign(self.private_key, hashes.SHA256())
        )
        return IssuedCertificate(
            chain=certificate.public_bytes(Encoding.PEM) + self.pem,
            serial=serial_of(certificate),
            expires_at=expires_at,
        )


def create_authority(*, organization: str, key: ec.EllipticCurvePrivateKey, now: float) -> CertificateAuthority:
    """A new self-signed CA with ``key``, valid for ten years, that may issue leaves only."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"shovey-trio CA of {organization}"[:64])])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_moment(now - MAX_CLOCK_SKEW))
        .not_valid_after(_moment(now + CA_LIFETIME))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return CertificateAuthority(certificate=certificate, private_key=key)


def read_certificates(pem: bytes) -> tuple[x509.Certificate, ...]:
    """Every certificate of a PEM file, in its order; at least one.

    Raises:
        CertificateUnreadable: garbage, or none.
    """
    try:
        return tuple(x509.load_pem_x509_certificates(pem))
    except UNREADABLE as exc:
        raise CertificateUnreadable("not a PEM certificate") from exc


def serial_of(certificate: x509.Certificate) -> str:
    """The serial number as it is stored: lower-case hex without leading zeros."""
    return format(certificate.serial_number, "x")


def issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether ``authority`` signed ``certificate``; says nothing of time and purpose."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def renew_at(certificate: x509.Certificate) -> float:
    """When a certificate should be renewed: after two thirds of its life, unix seconds."""
    start, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    return start + (end - start) * _RENEW_AFTER


def listener_hosts(hosts: Iterable[str]) -> tuple[str, ...]:
    """The names of a listener's certificate: always the local ones and ``INTERNAL_NAME``, then ``hosts``, each once."""
    names = (_general_name(host) for host in (INTERNAL_NAME, "localhost", "127.0.0.1", "::1", *hosts))
    return tuple(dict.fromkeys(str(name.value) for name in names))


def hosts_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """The DNS names and addresses a certificate is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    addresses = (str(address) for address in names.get_values_for_type(x509.IPAddress))
    return (*names.get_values_for_type(x509.DNSName), *addresses)


def _general_name(host: str) -> x509.DNSName | x509.IPAddress:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host.lower())


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _moment(at: float) -> datetime:
    # X.509 times have whole seconds; timedelta arithmetic keeps years beyond 2038 right on every platform.
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=int(at))
