"""A node's credentials, as they lie in the agent's state directory.

Key, certificate, trusted CAs and names are one file (0600) that is replaced at once, so that no crash can leave a key
beside another key's certificate. The controller's signing keys change on their own and have a file of their own.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cryptography import x509

from shovey_trio.core.errors import Code, Exit, NodeProtocolError, ShoveyError
from shovey_trio.core.order_signing import PUBLIC_KEY_BYTES, KeySet, PublicKey, key_id_of
from shovey_trio.identity.authority import read_certificates, renew_at
from shovey_trio.identity.files import FileUnusable, make_secret_directory, read_secret, write_secret
from shovey_trio.identity.names import parse_identity
from shovey_trio.identity.requests import KeyUnreadable, load_private_key

_FORMAT: Final = 1


class NotEnrolled(ShoveyError):
    """The state directory holds no credentials; ``shovey-agent enroll`` makes them."""

    reason, code, http, exit = "NOT_ENROLLED", Code.FAILED_PRECONDITION, 500, Exit.USAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Who this agent is and whom it trusts.

    Attributes:
        organization, node: its names.
        agent_instance: made at enrolment; a node that enrols again is another instance.
        enroll_address, control_address: ``host:port`` of the controller's listeners.
        certificate_chain, ca_certificates, private_key: PEM; the key is never shown in ``repr``.
    """

    organization: str
    node: str
    agent_instance: str
    enroll_address: str
    control_address: str
    certificate_chain: bytes
    ca_certificates: bytes
    private_key: bytes = field(repr=False)

    @property
    def renew_at(self) -> float:
        """When to renew: two thirds of the certificate's life, unix seconds."""
        return renew_at(read_certificates(self.certificate_chain)[0])

    @property
    def expires_at(self) -> float:
        return read_certificates(self.certificate_chain)[0].not_valid_after_utc.timestamp()


class CredentialStore:
    """The credential files of one state directory; all methods block for a file or two."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self._credentials = state_dir / "credentials.json"
        self._keys = state_dir / "signing-keys.json"

    def load(self) -> Credentials:
        """The node's credentials, checked.

        Raises:
            NotEnrolled: there are none.
            InsecureFile: somebody other than its owner can read them.
            FileUnusable: they are damaged.
        """
        if not self._credentials.exists():
            raise NotEnrolled(f"{self.state_dir} holds no credentials: run shovey-agent enroll with a join string")
        data = read_secret(self._credentials)
        try:
            credentials = _parse_credentials(json.loads(data))
            check_issued(credentials)
        except (ValueError, KeyError, TypeError, AttributeError, KeyUnreadable, NodeProtocolError) as exc:
            # Named by its type alone: the text of a parser's error could quote the key.
            raise FileUnusable(
                f"{self._credentials}: damaged ({type(exc).__name__}); enrol this node again",
                path=str(self._credentials),
            ) from None
        return credentials

    def save(self, credentials: Credentials) -> None:
        """Replaces the credentials at once and durably.

        Raises:
            OSError: they cannot be written; the old ones are untouched.
        """
        document = {
            "format": _FORMAT,
            "organization": credentials.organization,
            "node": credentials.node,
            "agent_instance": credentials.agent_instance,
            "enroll_address": credentials.enroll_address,
            "control_address": credentials.control_address,
            "certificate_chain": credentials.certificate_chain.decode("ascii"),
            "ca_certificates": credentials.ca_certificates.decode("ascii"),
            "private_key": credentials.private_key.decode("ascii"),
        }
        make_secret_directory(self.state_dir)
        write_secret(self._credentials, json.dumps(document, indent=1).encode("ascii") + b"\n")

    def load_signing_keys(self) -> KeySet:
        """The controller's signing keys as last heard.

        Raises:
            NotEnrolled: there are none.
            InsecureFile: somebody else could have written them.
            FileUnusable: they are damaged.
        """
        if not self._keys.exists():
            raise NotEnrolled(f"{self.state_dir} holds no signing keys: enrol this node again")
        try:
            return _parse_keys(json.loads(read_secret(self._keys)))
        except (ValueError, KeyError, TypeError) as exc:
            raise FileUnusable(f"{self._keys}: damaged ({type(exc).__name__})", path=str(self._keys)) from None

    def save_signing_keys(self, keys: KeySet) -> bool:
        """Keeps ``keys`` if their serial is higher than that of the set at hand; says whether it did.

        Raises:
            NodeProtocolError: a key is not a key, none is there, or they are another organization's.
            OSError: they cannot be written; the old ones are untouched.
        """
        _check_keys(keys)
        if self._keys.exists():
            known = self.load_signing_keys()
            if known.organization != keys.organization:
                raise NodeProtocolError(f"signing keys of {keys.organization!r}, expected {known.organization!r}")
            if keys.serial <= known.serial:
                return False
        self._write_keys(keys)
        return True

    def replace_signing_keys(self, keys: KeySet) -> None:
        """Keeps ``keys`` whatever was there before: at enrolment, when a join string vouches for the controller.

        Raises:
            NodeProtocolError, OSError: as ``save_signing_keys``.
        """
        _check_keys(keys)
        self._write_keys(keys)

    def _write_keys(self, keys: KeySet) -> None:
        document = {
            "format": _FORMAT,
            "organization": keys.organization,
            "serial": keys.serial,
            "keys": [
                {
                    "key_id": key.key_id,
                    "public_key": b64encode(key.public_bytes).decode("ascii"),
                    "created_at": key.created_at,
                    "active": key.active,
                }
                for key in keys.keys
            ],
        }
        make_secret_directory(self.state_dir)
        write_secret(self._keys, json.dumps(document, indent=1).encode("ascii") + b"\n")


def check_issued(credentials: Credentials) -> None:
    """Holds when certificate, key, CA and names belong together.

    Raises:
        NodeProtocolError: they do not.
    """
    try:
        leaf = read_certificates(credentials.certificate_chain)[0]
        trusted = read_certificates(credentials.ca_certificates)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        identity = parse_identity(names.get_values_for_type(x509.UniformResourceIdentifier))
    except (x509.ExtensionNotFound, ShoveyError) as exc:
        raise NodeProtocolError("the certificate does not parse") from exc
    if leaf.public_key() != load_private_key(credentials.private_key).public_key():
        raise NodeProtocolError("the certificate is for another key")
    if (identity.organization, identity.name) != (credentials.organization, credentials.node):
        raise NodeProtocolError(f"the certificate is for {identity.uri}")
    if leaf.issuer not in {certificate.subject for certificate in trusted}:
        raise NodeProtocolError("the certificate was not issued by the CA that came with it")


def _parse_credentials(document: dict[str, Any]) -> Credentials:
    if document.pop("format") != _FORMAT:
        raise ValueError("unknown format")
    for name in ("certificate_chain", "ca_certificates", "private_key"):
        document[name] = document[name].encode("ascii")
    return Credentials(**document)


def _check_keys(keys: KeySet) -> None:
    if not keys.keys or keys.serial < 1:
        raise NodeProtocolError("an empty set of signing keys")
    for key in keys.keys:
        if len(key.public_bytes) != PUBLIC_KEY_BYTES or key.key_id != key_id_of(key.public_bytes):
            raise NodeProtocolError(f"signing key {key.key_id[:32]!r} is malformed")


def _parse_keys(document: Mapping[str, Any]) -> KeySet:
    if document["format"] != _FORMAT:
        raise ValueError("unknown format")
    return KeySet(
        organization=str(document["organization"]),
        serial=int(document["serial"]),
        keys=tuple(
            PublicKey(
                key_id=str(entry["key_id"]),
                public_bytes=b64decode(entry["public_key"], validate=True),
                created_at=float(entry["created_at"]),
                active=bool(entry["active"]),
            )
            for entry in document["keys"]
        ),
    )
