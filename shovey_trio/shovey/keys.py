"""The RSA keys that orders to old nodes (schob) are signed with, as they lie on disk.

A schob holds exactly one public key, put there by hand, and says no more than ``invalid`` when an order does not fit
it. So a reset cannot simply replace the key: the old one stays for as long as a node may hold it, and each node is
signed for with the key it holds. What a node holds is

* what it has shown: it accepted an order signed with that key, or an admin says that it was given the key (``held``);
* else, what it was set up with: the newest key there was when it was registered, or the oldest that is left.

One JSON file per organization, 0600, replaced at once. Daemon and command line change it under one lock, each starting
from what is in the file.

    {"format": 1, "organization": "default", "held": {"web-1": "key id"},
     "resets": {"request id": 1700000000.0},
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
# Longer than a signed request is believed: `rest.clock_skew` is at most half of it.
_RESETS_KEPT: Final = 86_400.0
_BITS: Final = 2048  # schob's signatures have 344 characters; a larger key would leave no room for names in a query


@dataclass(frozen=True, slots=True, kw_only=True)
class SchobKey:
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
class SchobKeys:
    """All keys of an organization that a node may hold.

    Attributes:
        keys: oldest first, never empty; the last is the one that new nodes get.
        held: key id by node, where it is known.
        resets: requests that had a key made in the last day, with the time, so that a recorded one makes no second.
    """

    organization: str
    keys: tuple[SchobKey, ...]
    held: Mapping[str, str] = field(default_factory=dict)
    resets: Mapping[str, float] = field(default_factory=dict)

    @property
    def current(self) -> SchobKey:
        return self.keys[-1]

    def key_of(self, node: str, *, registered_at: float) -> SchobKey:
        """The key that orders for this node are signed with."""
        for key in self.keys:
            if key.key_id == self.held.get(node):
                return key
        before = [key for key in self.keys if key.created_at <= registered_at]
        return before[-1] if before else self.keys[0]

    def other_than(self, key_id: str) -> SchobKey | None:
        """What to try when a node does not hold that key: the newest other one."""
        return next((key for key in reversed(self.keys) if key.key_id != key_id), None)

    def with_key(self, key: SchobKey, *, request_id: str = "") -> SchobKeys:
        """With a new current key, and the request that asked for it."""
        resets = {asked: at for asked, at in self.resets.items() if at > key.created_at - _RESETS_KEPT}
        if request_id:
            resets[request_id] = key.created_at
        return replace(self, keys=(*self.keys, key), resets=resets)

    def with_held(self, held: Mapping[str, str]) -> SchobKeys:
        """With what some nodes have shown to hold."""
        return replace(self, held={**self.held, **held})

    def pruned(self, registered: Mapping[str, float]) -> SchobKeys:
        """Without the keys that no registered node holds, and without what is known of nodes that are gone.

        Args:
            registered: when each old node was registered, by name.
        """
        in_use = {self.key_of(node, registered_at=at).key_id for node, at in registered.items()}
        in_use.add(self.current.key_id)
        held = {node: key_id for node, key_id in self.held.items() if node in registered and key_id in in_use}
        return replace(self, keys=tuple(key for key in self.keys if key.key_id in in_use), held=held)


class SchobKeyFile(KeyFile[SchobKeys]):
    """The file that holds an organization's ``SchobKeys``."""

    holds = "legacy keys"

    @staticmethod
    def document(keys: SchobKeys) -> bytes:
        """See ``schob_keys_document``."""
        return schob_keys_document(keys)

    @staticmethod
    def parse(data: bytes) -> SchobKeys:
        """See ``parse_schob_keys``."""
        return parse_schob_keys(data)


def schob_keys_document(keys: SchobKeys) -> bytes:
    """The contents of a ``SchobKeyFile``: a secret."""
    document = {
        "format": _FORMAT,
        "organization": keys.organization,
        "keys": [_entry(key) for key in keys.keys],
        "held": dict(keys.held),
        "resets": dict(keys.resets),
    }
    return json.dumps(document, indent=1).encode("ascii") + b"\n"


def parse_schob_keys(data: bytes) -> SchobKeys:
    """Reads what ``schob_keys_document`` wrote.

    Raises:
        ValueError, KeyError, TypeError, InvalidRequest: it is no such document; the message may quote it.
    """
    return _parse(json.loads(data))


def make_schob_key(now: float) -> SchobKey:
    """A new RSA-2048 key; some 0.1 s of CPU."""
    return _with_id(generate_private_key(public_exponent=65537, key_size=_BITS), now)


def _with_id(private: RSAPrivateKey, created_at: float) -> SchobKey:
    public = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return SchobKey(key_id=hashlib.sha256(public).hexdigest()[:16], private_key=private, created_at=created_at)


def _entry(key: SchobKey) -> dict[str, object]:
    pem = key.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return {"key_id": key.key_id, "created_at": key.created_at, "private_key": pem.decode("ascii")}


def _parse(document: Mapping[str, Any]) -> SchobKeys:
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
    # Files of earlier versions have none.
    resets = {str(request_id): float(at) for request_id, at in dict(document.get("resets", {})).items()}
    return SchobKeys(organization=str(document["organization"]), keys=keys, held=dict(held), resets=resets)


def _first_keys(organization: str, now: float) -> SchobKeys:
    return SchobKeys(organization=organization, keys=(make_schob_key(now),))


def _ids(keys: SchobKeys) -> list[str]:
    return [key.key_id for key in keys.keys]


SCHOB_KEYS: Final = KeyKind(
    word=KIND,
    variable="SHOVEY_TRIO_LEGACY_KEYS",
    about="RSA keys for old nodes",
    file=SchobKeyFile,
    make=_first_keys,
    ids=_ids,
)
