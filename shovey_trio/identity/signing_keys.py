"""An organization's order-signing keys as they lie on disk.

One JSON file per organization, 0600, replaced at once: the private keys and the set that lists them can never disagree.
What a key may be used for stands in the set (``core.trust.key_sets``) and nowhere else. The file has the set as the
root key signed it, so that it cannot be changed here either.

    {"format": 2, "organization": "default", "root_public_key": "64 hex digits", "signed": "base64 of the signed set",
     "private_keys": {"key id": "base64 of 32 bytes"}}

A file of format 1, from before there were root keys, lists the keys itself; ``root_keys.ensure_root`` replaces it.
Daemon and command line change the file under one lock, each starting from what is in it.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shovey_trio.core.trust.key_sets import KeySet, KeyState, PublicKey, key_id_of, verify_key_set
from shovey_trio.core.trust.key_trust import PublishedKeys
from shovey_trio.core.trust.order_signing import SigningKey
from shovey_trio.identity.key_files import KeyFile

_FORMAT: Final = 2
_FORMAT_WITHOUT_ROOT: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKeys:
    """The keys of an organization, with the private halves of those that still sign.

    Attributes:
        keys: which keys there are and what they may be used for.
        private_keys: by key id; the active key's at least. Never shown in ``repr``.
        signed: ``keys`` as the root key signed them; empty before the organization has one.
        root_public_key: 32 bytes; empty before the organization has a root key.
    """

    keys: KeySet
    private_keys: Mapping[str, Ed25519PrivateKey] = field(repr=False)
    signed: bytes = b""
    root_public_key: bytes = b""

    @property
    def organization(self) -> str:
        return self.keys.organization

    @property
    def active(self) -> SigningKey:
        """The key that new orders are signed with."""
        key = next(key for key in self.keys.keys if key.state is KeyState.ACTIVE)
        return SigningKey(
            key_id=key.key_id, private_key=self.private_keys[key.key_id], created_at=float(key.not_before)
        )

    def for_doorbells(self, now: float) -> Ed25519PrivateKey:
        """The key that doorbells are signed with: the oldest one that still verifies.

        An on-demand agent learns of new keys when it calls, and calls when a doorbell rings that it believes.
        """
        known = [key for key in self.keys.usable(now) if key.key_id in self.private_keys]
        retiring = [key for key in known if key.not_after is not None and key.not_after > now]
        oldest = min(retiring, key=lambda key: key.not_before, default=None)
        return self.active.private_key if oldest is None else self.private_keys[oldest.key_id]

    def published(self) -> PublishedKeys:
        """The public half, for nodes and clients."""
        return PublishedKeys(keys=self.keys, signed=self.signed, root_public_key=self.root_public_key)


class SigningKeyFile(KeyFile[SigningKeys]):
    """The file that holds an organization's ``SigningKeys``."""

    holds = "signing keys"

    @staticmethod
    def document(keys: SigningKeys) -> bytes:
        """See ``signing_keys_document``."""
        return signing_keys_document(keys)

    @staticmethod
    def parse(data: bytes) -> SigningKeys:
        """See ``parse_signing_keys``."""
        return parse_signing_keys(data)


def make_signing_key(now: float) -> SigningKey:
    """A new Ed25519 key."""
    private = Ed25519PrivateKey.generate()
    return SigningKey(key_id=key_id_of(private.public_key().public_bytes_raw()), private_key=private, created_at=now)


def signing_keys_document(keys: SigningKeys) -> bytes:
    """The contents of a ``SigningKeyFile``: a secret.

    Raises:
        ValueError: the organization has no root key (our own bug).
    """
    if not keys.signed:
        raise ValueError("signing keys are stored as signed by the root key")
    document = {
        "format": _FORMAT,
        "organization": keys.organization,
        "root_public_key": keys.root_public_key.hex(),
        "signed": b64encode(keys.signed).decode("ascii"),
        "private_keys": private_keys_document(keys.private_keys),
    }
    return json.dumps(document, indent=1).encode("ascii") + b"\n"


def parse_signing_keys(data: bytes) -> SigningKeys:
    """Reads what ``signing_keys_document`` wrote, or a file of format 1.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is no such document; the message may quote it.
        KeySetRefused: the set in it does not hold.
    """
    document = json.loads(data)
    if document["format"] == _FORMAT_WITHOUT_ROOT:
        return _parse_without_root(document)
    if document["format"] != _FORMAT:
        raise ValueError("unknown format")
    root, signed = bytes.fromhex(document["root_public_key"]), b64decode(document["signed"], validate=True)
    keys = SigningKeys(
        keys=verify_key_set(signed, root, document["organization"]),
        private_keys=parse_private_keys(document["private_keys"]),
        signed=signed,
        root_public_key=root,
    )
    if keys.active.key_id not in keys.private_keys:
        raise ValueError("the active key's private half is missing")
    return keys


def private_keys_document(keys: Mapping[str, Ed25519PrivateKey]) -> dict[str, str]:
    """Private keys by key id, for a secret file."""
    return {key_id: b64encode(key.private_bytes_raw()).decode("ascii") for key_id, key in keys.items()}


def parse_private_keys(document: Mapping[str, str]) -> dict[str, Ed25519PrivateKey]:
    """Reads what ``private_keys_document`` wrote.

    Raises:
        ValueError, TypeError, AttributeError: it is no such document; the message may quote it.
    """
    found = {
        key_id: Ed25519PrivateKey.from_private_bytes(b64decode(text, validate=True))
        for key_id, text in document.items()
    }
    for key_id, key in found.items():
        if key_id_of(key.public_key().public_bytes_raw()) != key_id:
            raise ValueError("key and key id do not belong together")
    return found


def _parse_without_root(document: Mapping[str, Any]) -> SigningKeys:
    private: dict[str, Ed25519PrivateKey] = {}
    for entry in document["keys"]:
        private |= parse_private_keys({entry["key_id"]: entry["private_key"]})
    keys = tuple(
        PublicKey(
            public_bytes=private[entry["key_id"]].public_key().public_bytes_raw(),
            state=KeyState(entry["state"]),
            not_before=int(entry["created_at"]),
        )
        for entry in document["keys"]
    )
    if [key.state for key in keys].count(KeyState.ACTIVE) != 1:
        raise ValueError("not exactly one active key")
    serial = document["serial"]
    if type(serial) is not int or serial < 1:
        raise ValueError("serial")
    return SigningKeys(
        keys=KeySet(organization=str(document["organization"]), serial=serial, keys=keys), private_keys=private
    )
