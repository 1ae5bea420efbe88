"""The audit key, and what it has signed last: the head of the audit log and who may do what. Beside the store."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from shovey_trio.core.audit.head import SignedHead, decode_head, encode_head
from shovey_trio.core.trust.rights import Rights, decode_rights, encode_rights
from shovey_trio.identity.files import FileUnusable, make_secret_directory, read_public, read_secret, write_secret
from shovey_trio.identity.layout import DataDirectory


class AuditFiles:
    """The three files; every method blocks."""

    def __init__(self, directory: DataDirectory) -> None:
        self._key = directory.audit_key
        self._head = directory.audit_head
        self._rights = directory.audit_rights

    def ensure_key(self) -> Ed25519PrivateKey:
        """The key, made where a data directory is older than it.

        Raises:
            InsecureFile, FileUnusable: others can read it, or it is none.
            OSError: it cannot be made.
        """
        if not self._key.exists():
            make_secret_directory(self._key.parent)
            key = Ed25519PrivateKey.generate()
            write_secret(self._key, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return _parse(self._key, read_secret(self._key))

    def public_key(self) -> Ed25519PublicKey:
        """Its public half.

        Raises:
            InsecureFile, FileUnusable: there is none to be had.
        """
        return _parse(self._key, read_secret(self._key)).public_key()

    def read_head(self) -> SignedHead | None:
        """The newest signed head; None when there is no file of it.

        Raises:
            AuditBroken: it is there and does not hold.
            InsecureFile, FileUnusable: key or head cannot be read.
        """
        if not self._head.exists():
            return None
        return decode_head(read_public(self._head).decode("utf-8", "replace"), self.public_key())

    def write_head(self, signed: SignedHead) -> None:
        """Replaces the head at once and durably.

        Raises:
            OSError: it cannot be written; the old one is untouched.
        """
        write_secret(self._head, encode_head(signed).encode("ascii"))

    def read_rights(self) -> Rights | None:
        """Who may do what, as it was last kept; None when there is no file of it.

        Raises:
            AuditBroken: it is there and does not hold.
            InsecureFile, FileUnusable: key or file cannot be read.
        """
        if not self._rights.exists():
            return None
        return decode_rights(read_public(self._rights), self.public_key())

    def write_rights(self, rights: Rights) -> None:
        """As ``write_head``."""
        write_secret(self._rights, encode_rights(rights, self.ensure_key()))


def _parse(path: Path, pem: bytes) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise FileUnusable(f"{path}: not an Ed25519 private key", path=str(path))
    return key
