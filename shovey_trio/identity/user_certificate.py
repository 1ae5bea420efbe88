"""A user's own certificate, as the user's side sees it: whether it can be used, how long, what to do when it cannot."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.x509.oid import NameOID

from shovey_trio.core.errors import Code, Exit, ShoveyError
from shovey_trio.core.trust.orders import MAX_CLOCK_SKEW
from shovey_trio.core.trust.x509_errors import UNREADABLE
from shovey_trio.identity.authority import DAY, CertificateUnreadable, issued_by, read_certificates
from shovey_trio.identity.files import read_public, read_secret
from shovey_trio.identity.names import Identity, parse_identity
from shovey_trio.identity.renewal import RENEWAL_GRACE
from shovey_trio.identity.requests import KeyUnreadable, load_private_key

#: How long before its end a certificate is due for renewal, and its owner is told.
RENEWAL_DUE: Final = 30 * DAY


#: What is left to somebody without a certificate.
ASK: Final = "ask an admin for another one: shovey-trio user cert NAME"


class CertificateUnusable(ShoveyError):
    """No controller would take this certificate; the message says which, why, and what to do."""

    reason, code, http, exit = "CERTIFICATE_UNUSABLE", Code.FAILED_PRECONDITION, 500, Exit.DENIED


@dataclass(frozen=True, slots=True, kw_only=True)
class UserCertificate:
    """The certificate in ``file``, with its key and the CA of the controller as PEM."""

    file: Path
    leaf: x509.Certificate
    identity: Identity
    chain: bytes
    private_key: bytes = field(repr=False)
    ca: bytes

    def __str__(self) -> str:
        return f"the certificate {self.file} of {self.identity.label} of {self.identity.organization}"

    @property
    def expires_at(self) -> float:
        """Unix seconds."""
        return self.leaf.not_valid_after_utc.timestamp()

    @property
    def issuer(self) -> str:
        """What the CA calls itself."""
        names = self.leaf.issuer.get_attributes_for_oid(NameOID.COMMON_NAME)
        return str(names[0].value) if names else self.leaf.issuer.rfc4514_string()

    def is_due(self, now: float) -> bool:
        """Whether it is time to renew it."""
        return now > self.expires_at - RENEWAL_DUE

    def check(self, now: float) -> None:
        """Holds while it is valid.

        Raises:
            CertificateUnusable: it is not, by this machine's clock.
        """
        if now > self.expires_at + RENEWAL_GRACE:
            raise CertificateUnusable(f"{self} expired on {moment(self.expires_at)}; {ASK}")
        if now > self.expires_at:
            until = moment(self.expires_at + RENEWAL_GRACE)
            raise CertificateUnusable(
                f"{self} expired on {moment(self.expires_at)}; until {until} you can renew it: shovey login renew"
            )
        start = self.leaf.not_valid_before_utc.timestamp()
        if now + MAX_CLOCK_SKEW < start:
            raise CertificateUnusable(
                f"{self} is valid from {moment(start)} on, and this machine's clock says {moment(now)}: set the clock"
            )

    def renewed(self, *, chain: bytes, ca: bytes) -> UserCertificate:
        """A fresh certificate in the place of this one, for the same key and the same user.

        Raises:
            CertificateUnusable: it is another one.
        """
        fresh = user_certificate(self.file, chain=chain, private_key=self.private_key, ca=ca)
        if fresh.identity != self.identity:
            raise CertificateUnusable(f"the controller sent {fresh} in the place of {self}; nothing was changed")
        return fresh


def read_user_certificate(*, file: Path, key_file: Path, ca_file: Path) -> UserCertificate:
    """The certificate in a file, with its key and the CA; blocking.

    Raises:
        CertificateUnusable: as ``user_certificate``.
        InsecureFile: somebody other than its owner can read the key.
        FileUnusable: a file is missing.
    """
    return user_certificate(file, ca=read_public(ca_file), chain=read_public(file), private_key=read_secret(key_file))


def user_certificate(file: Path, *, chain: bytes, private_key: bytes, ca: bytes) -> UserCertificate:
    """A certificate that fits its key and its CA; whether it is valid now, ``check`` says.

    Raises:
        CertificateUnusable: one of the three is garbage, or they do not belong together.
    """
    try:
        leaf = read_certificates(chain)[0]
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        identity = parse_identity(names.get_values_for_type(x509.UniformResourceIdentifier))
    except (*UNREADABLE, x509.ExtensionNotFound, ShoveyError):
        raise CertificateUnusable(f"{file} holds no certificate of a user of shovey-trio; {ASK}") from None
    found = UserCertificate(file=file, leaf=leaf, identity=identity, chain=chain, private_key=private_key, ca=ca)
    try:
        key, authorities = load_private_key(private_key).public_key(), read_certificates(ca)
    except KeyUnreadable as error:
        raise CertificateUnusable(f"the key configured with {file}: {error.message}") from None
    except CertificateUnreadable as error:
        raise CertificateUnusable(f"the CA configured with {file}: {error.message}") from None
    if leaf.public_key() != key:
        raise CertificateUnusable(f"{found} does not belong to the key that is configured with it")
    if not any(issued_by(leaf, authority) for authority in authorities):
        raise CertificateUnusable(
            f"{found} was issued by {found.issuer!r}, and the CA configured with it is another installation's; {ASK}"
        )
    return found


def moment(at: float) -> str:
    """A time for people, in UTC."""
    return datetime.fromtimestamp(at, tz=UTC).strftime("%Y-%m-%d %H:%M UTC")
