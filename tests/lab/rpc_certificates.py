"""A certificate authority for tests: ECDSA P-256, identities as URIs, valid for a quarter, nothing on disk."""

from __future__ import annotations

import datetime
import ipaddress

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shovey_trio.rpc.bridge import ClientTls, ServerTls


class CertificateAuthority:
    """Issues what a test needs; two authorities do not trust each other."""

    def __init__(self, name: str = "test CA") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        builder = _builder(self._name, self._name, self._key.public_key())
        self._certificate = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True).sign(
            self._key, hashes.SHA256()
        )

    @property
    def pem(self) -> bytes:
        """The authority's own certificate."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def server_tls(self, *, mutual: bool) -> ServerTls:
        """Return the identity of a listener on loopback; ``mutual`` demands client certificates of this authority."""
        names = (x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
        certificate, key = self._issue("server", names)
        return ServerTls(certificate=certificate, private_key=key, client_ca=self.pem if mutual else None)

    def client_tls(self, identity: str | None) -> ClientTls:
        """Return the identity of a client, such as ``shovey://org/node/web-1``; ``None``: without a certificate."""
        if identity is None:
            return ClientTls(ca=self.pem)
        certificate, key = self._issue("client", (x509.UniformResourceIdentifier(identity),))
        return ClientTls(ca=self.pem, certificate=certificate, private_key=key)

    def _issue(self, common_name: str, names: tuple[x509.GeneralName, ...]) -> tuple[bytes, bytes]:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_name(common_name), self._name, key.public_key())
        certificate = builder.add_extension(x509.SubjectAlternativeName(names), critical=False).sign(
            self._key, hashes.SHA256()
        )
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return certificate.public_bytes(serialization.Encoding.PEM), private


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=90))
    )
