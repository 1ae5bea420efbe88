"""Key sets: which keys an organization's orders may be signed with, signed themselves by the organization's root key.

The root key signs nothing but key sets, may live off the controller, and is the one key that a node never lets others
change. So whoever steals a signing key is cut off by one new set, and whoever carries a set (a controller's stream, an
agent's network process) need not be trusted with it.

A signed set is one run of bytes: 64 bytes Ed25519 signature over ``KEY_SET_DOMAIN`` + body, then the body. The body is
JSON (RFC 8259) in the one form that ``encode_key_set`` writes – ASCII, names sorted, no white space, whole numbers – so
that whoever signs on another machine can read what they sign. Any other spelling is refused::

    {"format":1,"keys":[{"not_after":null,"not_before":1700000000,"public_key":"64 hex digits","state":"active"}],
     "organization":"default","serial":2}

A set has exactly one active key and at most ``MAX_KEYS``. Its serial grows with every change; a node keeps the set with
the highest serial it has seen, durably, and takes no lower one, so that an old set cannot bring a revoked key back.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shovey_trio.core.errors import Code, Exit, ShoveyError
from shovey_trio.core.trust.orders import MAX_CLOCK_SKEW, RefusalReason

KEY_SET_DOMAIN: Final = b"shovey-trio/key-set/1\x00"
PUBLIC_KEY_BYTES: Final = 32
#: Keys in one set. The active one, those of rotations that are not over, and those revoked lately.
MAX_KEYS: Final = 64
#: A key takes at most 160 bytes of the body.
MAX_KEY_SET_BYTES: Final = 16 * 1024
_SIGNATURE_BYTES: Final = 64
_FORMAT: Final = 1
_LATEST: Final = 2**53  # whole numbers up to here are the same in every JSON reader


class KeyState(StrEnum):
    """What a signing key may be used for."""

    ACTIVE = "active"  # signs and verifies
    RETIRING = "retiring"  # verifies what was signed before it was replaced, until its ``not_after``
    REVOKED = "revoked"  # nothing; listed so that its use is named for what it is


class KeySetRefusal(StrEnum):
    """Why a key set is not believed."""

    MALFORMED = "malformed"
    WRONG_ROOT = "wrong_root"
    OTHER_ORGANIZATION = "other_organization"
    OLD_SERIAL = "old_serial"


class KeySetRefused(ShoveyError):
    """A key set that must not be used; ``refusal`` says why. The keys at hand stay in force."""

    reason, code, http, exit = "KEY_SET_REFUSED", Code.FAILED_PRECONDITION, 400, Exit.DENIED

    def __init__(self, refusal: KeySetRefusal, message: str) -> None:
        super().__init__(message, refusal=refusal.value)
        self.refusal = refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicKey:
    """A signing key as nodes and clients know it.

    Attributes:
        public_bytes: 32 bytes, Ed25519.
        state: what it may be used for.
        not_before: when it was made, whole unix seconds. That a signed set holds it is what makes it good: a clock that
            went back must not take a fleet's orders away. (Agents up to 0.1 believe nothing earlier.)
        not_after: nothing of it is believed later (plus ``MAX_CLOCK_SKEW``); None: no end is set.
    """

    public_bytes: bytes
    state: KeyState
    not_before: int
    not_after: int | None = None

    @property
    def key_id(self) -> str:
        return key_id_of(self.public_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySet:
    """The keys an organization's orders may be signed with; ``serial`` grows with every change."""

    organization: str
    serial: int
    keys: tuple[PublicKey, ...]

    def find(self, key_id: str, now: float) -> PublicKey | RefusalReason:
        """The key that may verify something signed by ``key_id``, or why there is none.

        Args:
            key_id: as the signed thing names it.
            now: the controller's time as the verifier knows it, unix seconds.
        """
        for key in self.keys:
            if key.key_id == key_id:
                return _usable(key, now)
        return RefusalReason.UNKNOWN_KEY

    def usable(self, now: float) -> tuple[PublicKey, ...]:
        """Every key that may verify something now."""
        return tuple(key for key in self.keys if isinstance(_usable(key, now), PublicKey))


def key_id_of(public_bytes: bytes) -> str:
    """The short name of a public key: the first 8 bytes of its SHA-256, in hex."""
    return hashlib.sha256(public_bytes).hexdigest()[:16]


def encode_key_set(keys: KeySet) -> bytes:
    """The body of a signed set; equal sets give equal bytes, different sets different ones.

    Raises:
        ValueError: no set that may be signed (our own bug): see ``decode_key_set``.
    """
    body = _encode(keys)
    _check(keys, len(body))
    return body


def decode_key_set(body: bytes) -> KeySet:
    """Reads what ``encode_key_set`` wrote, and nothing else; without a signature it is no more than a proposal.

    Raises:
        KeySetRefused: ``MALFORMED``.
    """
    try:
        keys = _parse(body)
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise KeySetRefused(KeySetRefusal.MALFORMED, f"not a key set ({type(exc).__name__}: {exc})") from exc
    return keys


def sign_key_set(body: bytes, root: Ed25519PrivateKey) -> bytes:
    """The signed set.

    Raises:
        KeySetRefused: ``body`` is no key set: the root key signs nothing else.
    """
    decode_key_set(body)
    return root.sign(KEY_SET_DOMAIN + body) + body


def verify_key_set(signed_bytes: bytes, root_public_key: bytes, organization: str, minimum_serial: int = 0) -> KeySet:
    """The key set in ``signed_bytes``, if this organization's root key signed it and it is not too old.

    Args:
        signed_bytes: as received from anybody; looked into only after the signature was verified.
        root_public_key: 32 bytes, Ed25519.
        organization: whose keys are expected.
        minimum_serial: the serial of the set at hand; one with the same serial is accepted.

    Raises:
        KeySetRefused: ``refusal`` says why.
    """
    signature, body = signed_bytes[:_SIGNATURE_BYTES], signed_bytes[_SIGNATURE_BYTES:]
    if not body or len(body) > MAX_KEY_SET_BYTES:
        raise KeySetRefused(KeySetRefusal.MALFORMED, f"a key set of {len(signed_bytes)} bytes")
    try:
        Ed25519PublicKey.from_public_bytes(root_public_key).verify(signature, KEY_SET_DOMAIN + body)
    except (InvalidSignature, ValueError) as exc:
        raise KeySetRefused(KeySetRefusal.WRONG_ROOT, "the key set is not signed by the organization's root") from exc
    keys = decode_key_set(body)
    if keys.organization != organization:
        raise KeySetRefused(
            KeySetRefusal.OTHER_ORGANIZATION, f"the key set is {keys.organization!r}'s, not {organization!r}'s"
        )
    if keys.serial < minimum_serial:
        raise KeySetRefused(
            KeySetRefusal.OLD_SERIAL, f"the key set has serial {keys.serial}, {minimum_serial} is known already"
        )
    return keys


def _usable(key: PublicKey, now: float) -> PublicKey | RefusalReason:
    if key.state is KeyState.REVOKED:
        return RefusalReason.REVOKED_KEY
    if key.not_after is not None and now > key.not_after + MAX_CLOCK_SKEW:
        return RefusalReason.KEY_NOT_VALID
    return key


def _encode(keys: KeySet) -> bytes:
    document = {
        "format": _FORMAT,
        "organization": keys.organization,
        "serial": keys.serial,
        "keys": [
            {
                "public_key": key.public_bytes.hex(),
                "state": key.state.value,
                "not_before": key.not_before,
                "not_after": key.not_after,
            }
            for key in keys.keys
        ],
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode("ascii")


def _parse(body: bytes) -> KeySet:
    if len(body) > MAX_KEY_SET_BYTES:
        raise ValueError("too large")
    keys = _from_document(json.loads(body))
    _check(keys, len(body))
    if _encode(keys) != body:
        raise ValueError("not in canonical form")
    return keys


def _from_document(document: Any) -> KeySet:
    if document["format"] != _FORMAT:
        raise ValueError("unknown format")
    return KeySet(
        organization=_text(document["organization"]),
        serial=document["serial"],
        keys=tuple(
            PublicKey(
                public_bytes=bytes.fromhex(entry["public_key"]),
                state=KeyState(entry["state"]),
                not_before=entry["not_before"],
                not_after=entry["not_after"],
            )
            for entry in document["keys"]
        ),
    )


def _check(keys: KeySet, size: int) -> None:
    if not keys.organization:
        raise ValueError("no organization")
    if not _whole(keys.serial) or keys.serial < 1:
        raise ValueError("serial")
    if not 0 < len(keys.keys) <= MAX_KEYS or size > MAX_KEY_SET_BYTES:
        raise ValueError(f"{len(keys.keys)} keys, {size} bytes")
    for key in keys.keys:
        if len(key.public_bytes) != PUBLIC_KEY_BYTES or not _whole(key.not_before):
            raise ValueError("a key is no key")
        if key.not_after is not None and not _whole(key.not_after):
            raise ValueError("a key's end is no time")
    if len({key.key_id for key in keys.keys}) != len(keys.keys):
        raise ValueError("two keys with one key id")
    if [key.state for key in keys.keys].count(KeyState.ACTIVE) != 1:
        raise ValueError("not exactly one active key")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _whole(number: object) -> bool:
    # bool is an int in Python and 1.0 == 1: neither is what was signed.
    return type(number) is int and 0 <= number < _LATEST
