"""The controller's keys as this node believes them, in a file that is replaced at once.

This is ``core.trust.key_trust`` made durable: ``signing-keys.json`` (0600), in the directory of whoever takes orders,
which a network-facing process must not be able to write: whoever can, decides whose orders run here. What is read back
is verified again, so a set that the root key did not sign is noticed even there.

    {"format": 2, "organization": "default", "root_public_key": "64 hex digits", "signed": "base64 of the signed set"}

Without a root key (a controller from before there were any) the set stands in plain under ``plain``.
"""

from __future__ import annotations

import json
import threading
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any, Final

import structlog

from shovey_trio.core.errors import Code, Exit, ShoveyError
from shovey_trio.core.trust.key_sets import (
    KeySet,
    KeySetRefused,
    KeyState,
    PublicKey,
    decode_key_set,
    encode_key_set,
    key_id_of,
    verify_key_set,
)
from shovey_trio.core.trust.key_trust import KeyTrust, PublishedKeys
from shovey_trio.core.trust.orders import RefusalReason
from shovey_trio.identity.files import FileUnusable, make_secret_directory, read_secret, write_secret

_log = structlog.get_logger(__name__)
_FORMAT: Final = 2
_FORMAT_WITHOUT_ROOT: Final = 1
SIGNING_KEYS_FILE: Final = "signing-keys.json"


class NoKeys(ShoveyError):
    """The state directory holds no signing keys; ``shovey-agent enroll`` makes them."""

    reason, code, http, exit = "NOT_ENROLLED", Code.FAILED_PRECONDITION, 500, Exit.USAGE


class TrustedKeys:
    """What this node believes of its controller's keys. Implements ``core.trust.order_signing.OrderKeys``.

    ``learn`` and ``load`` block for a file; ``find`` and ``usable`` are answered from memory, in any thread.
    """

    def __init__(self, path: Path, trust: KeyTrust, *, durable: bool = True) -> None:
        self._path = path
        self._trust = trust
        self._durable = durable
        self._learning = threading.Lock()

    @classmethod
    def load(cls, path: Path, organization: str) -> TrustedKeys:
        """The keys in a file.

        Raises:
            NoKeys: there is none.
            InsecureFile: somebody else could have written it.
            FileUnusable: it is damaged, changed by somebody without the root key, or another organization's.
        """
        if not path.exists():
            raise NoKeys(f"{path.parent} holds no signing keys: enrol this node again")
        data = read_secret(path)
        try:
            trust = _parse(json.loads(data))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, KeySetRefused) as exc:
            raise FileUnusable(f"{path}: damaged ({exc}); enrol this node again", path=str(path)) from None
        if trust.organization != organization:
            raise FileUnusable(f"{path}: holds the keys of {trust.organization!r}", path=str(path))
        return cls(path, trust)

    @classmethod
    def unset(cls, path: Path, organization: str, *, root_public_key: bytes = b"") -> TrustedKeys:
        """Believes nothing yet but, when given, a root key; writes nothing before the first ``learn``.

        Whatever the file held before is replaced then: this is for enrolment.
        """
        return cls(path, KeyTrust(organization=organization, root_public_key=root_public_key), durable=False)

    @property
    def organization(self) -> str:
        return self._trust.organization

    @property
    def serial(self) -> int:
        """Of the set in force; 0 before the first."""
        return self._trust.serial

    @property
    def root_public_key(self) -> bytes:
        """32 bytes, or empty while this node knows no root key."""
        return self._trust.root_public_key

    def find(self, key_id: str, now: float) -> PublicKey | RefusalReason:
        """See ``KeySet.find``."""
        return self._trust.find(key_id, now)

    def usable(self, now: float) -> tuple[PublicKey, ...]:
        """See ``KeySet.usable``."""
        return self._trust.usable(now)

    def learn(self, offered: PublishedKeys) -> bool:
        """Believes a newer key set, if it deserves that (``core.trust.key_trust``); whether anything changed.

        Raises:
            KeySetRefused: it does not; what was believed stays in force.
            OSError: it is in force and could not be written; the next call tries again. A node that is restarted in
                between hears it again when it attaches, before any order.
        """
        with self._learning:
            learned = self._trust.learned(offered)
            if learned is self._trust and self._durable:
                return False
            first_root = learned.root_public_key and not self._trust.root_public_key
            self._trust, self._durable = learned, False
            make_secret_directory(self._path.parent)
            write_secret(self._path, _document(learned))
            self._durable = True
        root = key_id_of(learned.root_public_key) if first_root else None
        _log.info("keys.changed", serial=learned.serial, new_root=root)
        return True


def _document(trust: KeyTrust) -> bytes:
    document: dict[str, object] = {"format": _FORMAT, "organization": trust.organization}
    if trust.root_public_key:
        document["root_public_key"] = trust.root_public_key.hex()
        document["signed"] = b64encode(trust.signed).decode("ascii")
    elif trust.keys is not None:
        document["plain"] = b64encode(encode_key_set(trust.keys)).decode("ascii")
    return json.dumps(document, indent=1).encode("ascii") + b"\n"


def _parse(document: Any) -> KeyTrust:
    if document["format"] == _FORMAT_WITHOUT_ROOT:
        return KeyTrust(organization=str(document["organization"]), keys=_parse_without_root(document))
    if document["format"] != _FORMAT:
        raise ValueError("unknown format")
    organization = str(document["organization"])
    if "root_public_key" not in document:
        keys = decode_key_set(b64decode(document["plain"], validate=True))
        if keys.organization != organization:
            raise ValueError("another organization's keys")
        return KeyTrust(organization=organization, keys=keys)
    root, signed = bytes.fromhex(document["root_public_key"]), b64decode(document["signed"], validate=True)
    keys = verify_key_set(signed, root, organization)
    return KeyTrust(organization=organization, keys=keys, signed=signed, root_public_key=root)


def _parse_without_root(document: Any) -> KeySet:
    """A file that an agent from before there were root keys has written."""
    return KeySet(
        organization=str(document["organization"]),
        serial=int(document["serial"]),
        keys=tuple(
            PublicKey(
                public_bytes=b64decode(entry["public_key"], validate=True),
                state=KeyState.ACTIVE if entry["active"] else KeyState.RETIRING,
                not_before=int(entry["created_at"]),
            )
            for entry in document["keys"]
        ),
    )
