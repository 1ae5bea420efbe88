"""The RSA keys that orders to old nodes (schob) are signed with, as they lie on disk.

A schob holds exactly one public key, put there by hand, and says no more than ``invalid`` when an order does not fit
it. So a reset cannot simply replace the key: the old one stays for as long as a node may hold it, and each node is
signed for with the key it holds. What a node holds is

* what it has shown: it accepted an order signed with that key, or an admin says that it was given the key (``held``);
* else, what it was set up with: the newest key there was when it was registered, or the oldest that is left.

One JSON file per organization, 0600, replaced at once. Daemon and command line change it under one lock, each starting
from what is in the file.

    {"format": 1, "organization": "default", "held": {"web-1": "key id"},
     "keys": [{"key_id": "…", "created_at": 1700000000.0, "private_key": "PEM"}]}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from shovey_trio.core.chef.signing import load_private_key
from shovey_trio.identity.key_files import KeyFile
from shovey_trio.identity.key_kinds import KeyKind
from shovey_trio.shovey.kind import KIND

_FORMAT: Final = 1
_BITS: Final = 2048  # schob's signatures have 344 characters; a larger key would leave no room for names in a query


@dataclass(frozen=True, slots=True, kw_only=True)
class LegacyKey:
    """A key and its short name: the first 8 bytes of its public half's SHA-256, in hex."""

    key_id: str
    private_key: RSAPrivateKey
    created_at: float

    @property
    def public_pem(self) -> str:
        """What goes on the nodes."""
        public = self.private_key.public_key()
        return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")


@dataclass(frozen=True, slots=True, kw_only=True)
class LegacyKeys:
    """All keys of an organization that a node may hold.

    Attributes:
        keys: oldest first, never empty; the last is the one that new nodes get.
        held: key id by node, where it is known.
    """

    organization: str
    keys: tuple[LegacyKey, ...]
    held: Mapping[str, str] = field(default_factory=dict)

    @property
    def current(self) -> LegacyKey:
        return self.keys[-1]

    def key_of(self, node: str, *, registered_at: float) -> LegacyKey:
        """The key that orders for this node are signed with."""
        for key in self.keys:
            if key.key_id == self.held.get(node):
                return key
        before = [key for key in self.keys if key.created_at <= registered_at]
        return before[-1] if before else self.keys[0]

    def other_than(self, key_id: str) -> LegacyKey | None:
        """What to try when a node does not hold that key: the newest other one."""
        return next((key for key in reversed(self.keys) if key.key_id != key_id), None)

    def with_key(self, key: LegacyKey) -> LegacyKeys:
        """With a new current key."""
        return replace(self, keys=(*self.keys, key))

    def with_held(self, held: Mapping[str, str]) -> LegacyKeys:
        """With what some nodes have shown to hold."""
        return replace(self, held={**self.held, **held})

    def pruned(self, registered: Mapping[str, float]) -> LegacyKeys:
        """Without the keys that no registered node holds, and without what is known of nodes that are gone.

        Args:
            registered: when each old node was registered, by name.
        """
        in_use = {self.key_of(node, registered_at=at).key_id for node, at in registered.items()}
        in_use.add(self.current.key_id)
        held = {node: key_id for node, key_id in self.held.items() if node in registered and key_id in in_use}
        return replace(self, keys=tuple(key for key in self.keys if key.key_id in in_use), held=held)


class LegacyKeyFile(KeyFile[LegacyKeys]):
    """The file that holds an organization's ``LegacyKeys``."""

    holds = "legacy keys"

    @staticmethod
    def document(keys: LegacyKeys) -> bytes:
        """See ``legacy_keys_document``."""
        return legacy_keys_document(keys)

    @staticmethod
    def parse(data: bytes) -> LegacyKeys:
        """See ``parse_legacy_keys``."""
        return parse_legacy_keys(data)


def legacy_keys_document(keys: LegacyKeys) -> bytes:
    """The contents of a ``LegacyKeyFile``: a secret."""
    document = {
        "format": _FORMAT,
        "organization": keys.organization,
        "keys": [_entry(key) for key in keys.keys],
        "held": dict(keys.held),
    }
    return json.dumps(document, indent=1).encode("ascii") + b"\n"


def parse_legacy_keys(data: bytes) -> LegacyKeys:
    """Reads what ``legacy_keys_document`` wrote.

    Raises:
        ValueError, KeyError, TypeError, InvalidRequest: it is no such document; the message may quote it.
    """
    return _parse(json.loads(data))


def make_legacy_key(now: float) -> LegacyKey:
    """A new RSA-2048 key; some 0.1 s of CPU."""
    return _with_id(generate_private_key(public_exponent=65537, key_size=_BITS), now)


def _with_id(private: RSAPrivateKey, created_at: float) -> LegacyKey:
    public = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return LegacyKey(key_id=hashlib.sha256(public).hexdigest()[:16], private_key=private, created_at=created_at)


def _entry(key: LegacyKey) -> dict[str, object]:
    pem = key.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return {"key_id": key.key_id, "created_at": key.created_at, "private_key": pem.decode("ascii")}


def _parse(document: Mapping[str, Any]) -> LegacyKeys:
    if document["format"] != _FORMAT:
        raise ValueError("unknown format")
    keys = tuple(
        _with_id(load_private_key(entry["private_key"]), float(entry["created_at"])) for entry in document["keys"]
    )
    if not keys or [key.key_id for key in keys] != [entry["key_id"] for entry in document["keys"]]:
        raise ValueError("key and key id do not belong together")
    held = document["held"]
    if not all(isinstance(key_id, str) for key_id in held.values()):
        raise ValueError("held")
    return LegacyKeys(organization=str(document["organization"]), keys=keys, held=dict(held))


def _first_keys(organization: str, now: float) -> LegacyKeys:
    return LegacyKeys(organization=organization, keys=(make_legacy_key(now),))


def _ids(keys: LegacyKeys) -> list[str]:
    return [key.key_id for key in keys.keys]


LEGACY_KEYS: Final = KeyKind(
    word=KIND,
    variable="SHOVEY_TRIO_LEGACY_KEYS",
    about="RSA keys for old nodes",
    file=LegacyKeyFile,
    make=_first_keys,
    ids=_ids,
)
