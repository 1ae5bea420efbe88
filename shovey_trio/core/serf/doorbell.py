"""The doorbell: the small signed message that tells nodes over serf that orders wait for them.

It carries no order. Everybody in the cluster can read it and, having woken, asks the controller what is to be done; a
false wake costs one cheap call, a forged one is refused before anything happens.

Layout, version 1, big-endian, 45 bytes of head, then the audience's filter, then 64 bytes of Ed25519 signature over
``SIGNING_DOMAIN`` + head + filter:

====== ==== =======================================================================
offset size field
====== ==== =======================================================================
0      1    version, 1
1      1    kind (``DoorbellKind``)
2      1    audience (``Audience``)
3      4    key id: the first bytes of blake2b of the public key
7      8    organization: blake2b of its name
15     16   job id, the UUID's bytes
31     4    spread, milliseconds
35     4    issued, unix seconds
39     2    lifetime, seconds
41     4    epoch of the controller
45     n    ``BLOOM`` only: 1 byte number of hashes, then the filter's bits
====== ==== =======================================================================

Who it is for (gossip is paid per query, not per node it is meant for): the query's own ``FilterNodes`` while the
encoded query stays within ``QUERY_SIZE_SHARED``; else one unfiltered query with a Bloom filter of the targets, salted
with the job id; beyond that everybody. A Bloom filter never misses a target. Its false wakes, for a source name of 28
characters: 100 targets in a query of 463 bytes 4.6 in 10,000 nodes; 500 targets in 1,024 bytes 29.
"""

from __future__ import annotations

import hashlib
import math
import struct
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from shovey_trio.core.errors import Code, Exit, ShoveyError

SIGNING_DOMAIN: Final = b"shovey-trio doorbell v1\x00"
KEY_ID_SIZE: Final = 4
MAX_LIFETIME: Final = 2**16 - 1

_HEAD = struct.Struct(">BBB4s8s16sIIHI")
_VERSION = 1
_SIGNATURE_SIZE = 64
_ORGANIZATION_SIZE = 8
#: Bytes of a doorbell without a filter.
DOORBELL_SIZE: Final = _HEAD.size + _SIGNATURE_SIZE
#: A doorbell is part of a query, so this bounds what a decoder has to look at.
MAX_DOORBELL_SIZE: Final = 1366
_MAX_HASHES = 16
_INDEXES = struct.Struct(">16I")


class DoorbellKind(IntEnum):
    """What waits for the node; it decides nothing but the urgency, the order itself is authoritative."""

    START = 1
    CANCEL = 2
    RESERVE = 3
    COMMIT = 4
    RELEASE = 5


class Audience(IntEnum):
    """How a node knows whether it is meant."""

    LISTED = 1  # serf's FilterNodes delivered it to nobody else
    BLOOM = 2
    ALL = 3


class BellRefusal(StrEnum):
    """Why a doorbell is not obeyed."""

    MALFORMED = "malformed"
    UNKNOWN_KEY = "unknown_key"
    BAD_SIGNATURE = "bad_signature"
    WRONG_ORGANIZATION = "wrong_organization"
    NOT_YET_VALID = "not_yet_valid"
    EXPIRED = "expired"
    STALE_EPOCH = "stale_epoch"


class DoorbellRefused(ShoveyError):
    """A doorbell that must not be obeyed; ``refusal`` says why. Drop it: whoever rang cannot be told."""

    reason, code, http, exit = "DOORBELL_REFUSED", Code.PERMISSION_DENIED, 403, Exit.DENIED

    def __init__(self, refusal: BellRefusal, message: str) -> None:
        super().__init__(message, refusal=refusal.value)
        self.refusal = refusal


class Signer(Protocol):
    """What signs doorbells, for instance ``Ed25519PrivateKey``."""

    def sign(self, data: bytes, /) -> bytes:
        """The 64-byte Ed25519 signature of ``data``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Doorbell:
    """A decoded doorbell.

    Attributes:
        kind: what waits.
        key_id: ``short_key_id`` of the organization's public key.
        organization: ``organization_hash`` of its name.
        job_id: UUID in canonical form.
        spread_ms: milliseconds over which the woken nodes spread their calls.
        issued_at: unix seconds, whole: the wire has no fractions.
        expires_at: unix seconds, at most ``MAX_LIFETIME`` after ``issued_at``.
        epoch: the controller's epoch.
        audience: how a node knows whether it is meant.
        bloom: the filter with its number of hashes, empty unless the audience is ``BLOOM``.
    """

    kind: DoorbellKind
    key_id: bytes
    organization: bytes
    job_id: str
    spread_ms: int
    issued_at: int
    expires_at: int
    epoch: int
    audience: Audience = Audience.LISTED
    bloom: bytes = b""


def encode(doorbell: Doorbell, signer: Signer) -> bytes:
    """The signed payload.

    Raises:
        ValueError: a field does not fit its place (our own bug).
    """
    if (doorbell.audience is Audience.BLOOM) != bool(doorbell.bloom):
        raise ValueError("a Bloom filter belongs to the audience BLOOM and to no other")
    try:
        head = _HEAD.pack(
            _VERSION,
            doorbell.kind,
            doorbell.audience,
            _exactly(doorbell.key_id, KEY_ID_SIZE),
            _exactly(doorbell.organization, _ORGANIZATION_SIZE),
            uuid.UUID(doorbell.job_id).bytes,
            doorbell.spread_ms,
            doorbell.issued_at,
            doorbell.expires_at - doorbell.issued_at,
            doorbell.epoch,
        )
    except struct.error as exc:
        raise ValueError(f"doorbell: {exc}") from exc
    signed = head + doorbell.bloom
    return signed + signer.sign(SIGNING_DOMAIN + signed)


def decode(payload: bytes) -> Doorbell:
    """Reads a payload without believing it; ``verify`` is what an agent calls.

    Raises:
        DoorbellRefused: ``MALFORMED``.
    """
    if not DOORBELL_SIZE <= len(payload) <= MAX_DOORBELL_SIZE:
        raise DoorbellRefused(BellRefusal.MALFORMED, f"a doorbell of {len(payload)} bytes")
    version, kind, audience, key_id, organization, job, spread, issued, lifetime, epoch = _HEAD.unpack_from(payload)
    if version != _VERSION:
        raise DoorbellRefused(BellRefusal.MALFORMED, f"unknown doorbell version {version}")
    bloom = payload[_HEAD.size : -_SIGNATURE_SIZE]
    try:
        doorbell = Doorbell(
            kind=DoorbellKind(kind),
            key_id=key_id,
            organization=organization,
            job_id=str(uuid.UUID(bytes=job)),
            spread_ms=spread,
            issued_at=issued,
            expires_at=issued + lifetime,
            epoch=epoch,
            audience=Audience(audience),
            bloom=bloom,
        )
    except ValueError as exc:
        raise DoorbellRefused(BellRefusal.MALFORMED, str(exc)) from exc
    if (doorbell.audience is Audience.BLOOM) != bool(bloom):
        raise DoorbellRefused(BellRefusal.MALFORMED, "filter and audience disagree")
    if bloom and (len(bloom) < 2 or not 1 <= bloom[0] <= _MAX_HASHES):
        raise DoorbellRefused(BellRefusal.MALFORMED, "impossible Bloom filter")
    return doorbell


def verify(
    payload: bytes,
    *,
    keys: Mapping[bytes, Ed25519PublicKey],
    organization: str,
    now: float,
    skew: float,
    min_epoch: int = 0,
) -> Doorbell:
    """Decodes a payload and believes it, or says why not. Whether this node is meant is ``is_for``'s to say.

    Args:
        payload: payload of the query.
        keys: the organization's public keys by ``short_key_id``.
        organization: the organization this node belongs to.
        now: unix seconds.
        skew: seconds that the two clocks may differ.
        min_epoch: highest epoch this node has obeyed.

    Raises:
        DoorbellRefused: with the reason; the signature is checked before any field is believed.
    """
    doorbell = decode(payload)
    key = keys.get(doorbell.key_id)
    if key is None:
        raise DoorbellRefused(BellRefusal.UNKNOWN_KEY, "no such key here")
    try:
        key.verify(payload[-_SIGNATURE_SIZE:], SIGNING_DOMAIN + payload[:-_SIGNATURE_SIZE])
    except InvalidSignature as exc:
        raise DoorbellRefused(BellRefusal.BAD_SIGNATURE, "the signature is not of these bytes") from exc
    if doorbell.organization != organization_hash(organization):
        raise DoorbellRefused(BellRefusal.WRONG_ORGANIZATION, "for another organization")
    if now < doorbell.issued_at - skew:
        raise DoorbellRefused(BellRefusal.NOT_YET_VALID, f"issued {doorbell.issued_at - now:.1f} s ahead of this clock")
    if now > doorbell.expires_at + skew:
        raise DoorbellRefused(BellRefusal.EXPIRED, f"expired {now - doorbell.expires_at:.1f} s ago")
    if doorbell.epoch < min_epoch:
        raise DoorbellRefused(BellRefusal.STALE_EPOCH, f"epoch {doorbell.epoch} after {min_epoch}")
    return doorbell


def is_for(doorbell: Doorbell, node: str) -> bool:
    """Whether ``node`` (its full serf name) may be meant: never False for a target, rarely True for another."""
    if doorbell.audience is not Audience.BLOOM:
        return True
    hashes, bits = doorbell.bloom[0], doorbell.bloom[1:]
    return all(bits[i >> 3] & (1 << (i & 7)) for i in _bloom_indexes(node, doorbell.job_id, hashes, len(bits) * 8))


def build_bloom(targets: Sequence[str], job_id: str, size: int) -> bytes:
    """A Bloom filter of exactly ``size`` bytes, its leading number of hashes included, salted with the job id."""
    bits = bytearray(size - 1)
    hashes = _best_hashes(len(targets), len(bits) * 8)
    for name in targets:
        for i in _bloom_indexes(name, job_id, hashes, len(bits) * 8):
            bits[i >> 3] |= 1 << (i & 7)
    return bytes([hashes]) + bytes(bits)


def false_wake_rate(targets: int, size: int) -> float:
    """The share of other nodes that a filter of ``size`` bytes wakes in vain."""
    bits = (size - 1) * 8
    if bits <= 0:
        return 1.0
    hashes = _best_hashes(targets, bits)
    return float((1 - math.exp(-hashes * targets / bits)) ** hashes)


def organization_hash(name: str) -> bytes:
    """The 8 bytes by which a doorbell names an organization."""
    return _hash(name.encode("utf-8", "surrogateescape"), _ORGANIZATION_SIZE, b"organization")


def short_key_id(public_key: Ed25519PublicKey) -> bytes:
    """The 4 bytes by which a doorbell names the key that signed it. Collisions cost a refused doorbell, no more."""
    return _hash(public_key.public_bytes_raw(), KEY_ID_SIZE, b"key")


def attach_delay(node: str, job_id: str, spread_ms: int) -> float:
    """Seconds that ``node`` waits before it attaches: the same each time for this job, even over the spread."""
    value = _hash(f"{job_id}\x00{node}".encode("utf-8", "surrogateescape"), 8, b"delay")
    return int.from_bytes(value, "big") / 2**64 * spread_ms / 1000


def _bloom_indexes(name: str, job_id: str, hashes: int, bits: int) -> list[int]:
    # One long digest has room for every index. Stretching two hashes to many is usual and wakes twice as many here: the
    # filters are small, so that arithmetic progressions overlap.
    digest = _hash(name.encode("utf-8", "surrogateescape"), 64, b"bloom", salt=uuid.UUID(job_id).bytes)
    return [value % bits for value in _INDEXES.unpack(digest)[:hashes]]


def _best_hashes(targets: int, bits: int) -> int:
    return min(_MAX_HASHES, max(1, round(bits / max(1, targets) * math.log(2))))


def _hash(data: bytes, size: int, purpose: bytes, *, salt: bytes = b"") -> bytes:
    person = b"sho:" + purpose  # blake2b takes 16 bytes of it
    return hashlib.blake2b(data, digest_size=size, person=person, salt=salt).digest()


def _exactly(value: bytes, size: int) -> bytes:
    if len(value) != size:
        raise ValueError(f"{len(value)} bytes where {size} belong")
    return value
