"""A node's credentials, as they lie in the agent's state directory.

Key, certificate, trusted CAs and names are one file (0600) that is replaced at once, so that no crash can leave a key
beside another key's certificate. The controller's signing keys change on their own (``trusted_keys``).
"""

from __future__ import annotations

import hashlib
import json
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cryptography import x509

from shovey_agent.desk.trusted_keys import SIGNING_KEYS_FILE
from shovey_trio.core.errors import Code, Exit, NodeProtocolError, ShoveyError
from shovey_trio.identity.authority import read_certificates, renew_at
from shovey_trio.identity.files import FileUnusable, check_private, make_secret_directory, read_secret, write_secret
from shovey_trio.identity.names import parse_identity
from shovey_trio.identity.requests import KeyUnreadable, load_private_key, make_private_key, private_key_pem

_FORMAT: Final = 1
#: What an agent keeps beside its credentials; it must be nobody else's to read or to change either.
_PRIVATE: Final = ("nonces", "voided", "runs", "enrolling.json", SIGNING_KEYS_FILE)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What an enrolment goes by, from before its token is used until the credentials are there."""

    agent_instance: str
    private_key: bytes = field(repr=False)


class CredentialStore:
    """The credential files of one state directory; all methods block for a file or two."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self._credentials = state_dir / "credentials.json"
        self._attempt = state_dir / "enrolling.json"
        #: See ``trusted_keys``.
        self.signing_keys = state_dir / SIGNING_KEYS_FILE

    def load(self) -> Credentials:
        """The node's credentials, checked.

        Raises:
            NotEnrolled: there are none.
            InsecureFile: somebody other than its owner can read them, or the state beside them.
            FileUnusable: they are damaged.
        """
        check_private((self.state_dir, *(self.state_dir / name for name in _PRIVATE)))
        if not self._credentials.exists():
            raise NotEnrolled(f"{self.state_dir} holds no credentials: run shovey-agent enroll with a join string")
        data = read_secret(self._credentials)
        try:
            credentials = _parse_credentials(json.loads(data))
            check_issued(credentials)
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
            KeyUnreadable,
            NodeProtocolError,
        ) as exc:
            # Named by its type alone: the text of a parser's error could quote the key.
            raise FileUnusable(
                f"{self._credentials}: damaged ({type(exc).__name__}); enrol this node again",
                path=str(self._credentials),
            ) from None
        return credentials

    def attempt(self, token: str) -> Attempt:
        """What an enrolment with this token goes by, durably: the same when it is tried again.

        Raises:
            OSError, InsecureFile: the directory cannot be used.
        """
        make_secret_directory(self.state_dir)
        check_private((self.state_dir, self._attempt))
        digest = hashlib.sha256(token.encode()).hexdigest()
        with suppress(FileUnusable, ValueError, KeyError, TypeError, AttributeError, RecursionError, KeyUnreadable):
            begun = json.loads(read_secret(self._attempt))
            load_private_key(begun["private_key"].encode("ascii"))
            if begun["token"] == digest:
                return Attempt(
                    agent_instance=str(begun["agent_instance"]), private_key=begun["private_key"].encode("ascii")
                )
        fresh = Attempt(agent_instance=str(uuid.uuid4()), private_key=private_key_pem(make_private_key()))
        document = {
            "token": digest,
            "agent_instance": fresh.agent_instance,
            "private_key": fresh.private_key.decode("ascii"),
        }
        write_secret(self._attempt, json.dumps(document).encode("ascii"))
        return fresh

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
        with suppress(OSError):  # it is of no further use, and no harm
            self._attempt.unlink()


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
