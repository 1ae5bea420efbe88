"""An organization's order-signing keys as they lie on disk.

One JSON file per organization, 0600, replaced at once: the keys and the serial of their set can never be of two minds.
``active`` signs; ``retiring`` keys still verify, so that orders under way survive a rotation; a revoked key is not in
the file any more. The serial grows with every change, and nodes keep the set with the highest one.

    {"format": 1, "organization": "default", "serial": 1,
     "keys": [{"key_id": "…", "state": "active", "created_at": 1700000000.0, "private_key": "base64 of 32 bytes"}]}
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shovey_trio.core.order_signing import KeySet, PublicKey, SigningKey, key_id_of
from shovey_trio.identity.files import FileUnusable, read_secret, write_secret

_FORMAT: Final = 1
_ACTIVE: Final = "active"
_RETIRING: Final = "retiring"


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKeys:
    """The private keys of an organization.

    Attributes:
        organization: whose orders they sign.
        serial: grows with every change.
        active: the key that new orders are signed with.
        retiring: keys that only verify any more, newest first.
    """

    organization: str
    serial: int
    active: SigningKey
    retiring: tuple[SigningKey, ...] = ()

    def published(self) -> KeySet:
        """The public half, for nodes and clients."""
        return KeySet(
            organization=self.organization,
            serial=self.serial,
            keys=tuple(
                PublicKey(
                    key_id=key.key_id,
                    public_bytes=key.public_bytes,
                    created_at=key.created_at,
                    active=key is self.active,
                )
                for key in (self.active, *self.retiring)
            ),
        )


class SigningKeyFile:
    """The file that holds an organization's ``SigningKeys``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self, organization: str) -> SigningKeys:
        """Reads and checks the file.

        Raises:
            InsecureFile: somebody other than its owner can read it.
            FileUnusable: missing, damaged, or another organization's.
        """
        data = read_secret(self.path)
        try:
            keys = _parse(json.loads(data))
        except (ValueError, KeyError, TypeError) as exc:
            # The cause is named by its type alone: its text could quote the file.
            raise FileUnusable(f"{self.path}: not a file of signing keys ({type(exc).__name__})") from None
        if keys.organization != organization:
            raise FileUnusable(f"{self.path}: holds the keys of {keys.organization!r}, not of {organization!r}")
        return keys

    def save(self, keys: SigningKeys) -> None:
        """Replaces the file at once and durably.

        Raises:
            OSError: it cannot be written; the old file is untouched.
        """
        document = {
            "format": _FORMAT,
            "organization": keys.organization,
            "serial": keys.serial,
            "keys": [_entry(keys.active, _ACTIVE), *(_entry(key, _RETIRING) for key in keys.retiring)],
        }
        write_secret(self.path, json.dumps(document, indent=1).encode("ascii") + b"\n")


def make_signing_key(now: float) -> SigningKey:
    """A new Ed25519 key."""
    private = Ed25519PrivateKey.generate()
    return SigningKey(key_id=key_id_of(private.public_key().public_bytes_raw()), private_key=private, created_at=now)


def _entry(key: SigningKey, state: str) -> dict[str, object]:
    return {
        "key_id": key.key_id,
        "state": state,
        "created_at": key.created_at,
        "private_key": b64encode(key.private_key.private_bytes_raw()).decode("ascii"),
    }


def _parse(document: Mapping[str, Any]) -> SigningKeys:
    if document["format"] != _FORMAT:
        raise ValueError("unknown format")
    by_state: dict[str, list[SigningKey]] = {_ACTIVE: [], _RETIRING: []}
    for entry in document["keys"]:
        private = Ed25519PrivateKey.from_private_bytes(b64decode(entry["private_key"], validate=True))
        key = SigningKey(
            key_id=key_id_of(private.public_key().public_bytes_raw()),
            private_key=private,
            created_at=float(entry["created_at"]),
        )
        if key.key_id != entry["key_id"]:
            raise ValueError("key and key id do not belong together")
        by_state[entry["state"]].append(key)
    (active,) = by_state[_ACTIVE]
    serial = document["serial"]
    if type(serial) is not int or serial < 1:
        raise ValueError("serial")
    return SigningKeys(
        organization=str(document["organization"]), serial=serial, active=active, retiring=tuple(by_state[_RETIRING])
    )
