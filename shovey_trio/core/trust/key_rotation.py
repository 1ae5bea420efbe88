"""What becomes of a key set when a key is replaced or revoked: each change is the next set, with a higher serial.

A rotation never takes a key away from an order under way: the old key goes on verifying for the overlap. A revocation
does, at once; that is its purpose. Fresh keys are made by the caller and passed in.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from shovey_trio.core.errors import InvalidRequest, NotFound
from shovey_trio.core.trust.key_sets import MAX_KEYS, KeySet, KeyState, PublicKey

#: How long a replaced key goes on verifying, in seconds. Longer than any order lives, and than an on-demand agent stays
#: away: until it has called, it knows a doorbell by the old key alone.
DEFAULT_OVERLAP: Final = 86_400.0
#: Revoked keys that stay listed; nodes refuse the others as unknown.
_LISTED_REVOKED: Final = 16


def first_set(organization: str, fresh: bytes, *, now: float) -> KeySet:
    """The first set of an organization, with one active key."""
    return KeySet(organization=organization, serial=1, keys=(_active(fresh, now),))


def rotated(keys: KeySet, fresh: bytes, *, now: float, overlap: float = DEFAULT_OVERLAP) -> KeySet:
    """The next set, in which the key ``fresh`` (32 bytes) signs and the one before verifies for ``overlap`` seconds.

    Raises:
        InvalidRequest: so many rotations in one overlap that the set would be full.
    """
    until = int(now + overlap)
    others = tuple(
        replace(key, state=KeyState.RETIRING, not_after=until) if key.state is KeyState.ACTIVE else key
        for key in keys.keys
    )
    return _next(keys, (_active(fresh, now), *others), now)


def revoked(keys: KeySet, key_id: str, fresh: bytes, *, now: float) -> KeySet:
    """The next set, in which ``key_id`` is worth nothing; ``fresh`` takes its place if it was the one that signs.

    Raises:
        NotFound: no such key.
        InvalidRequest: it is revoked already.
    """
    found = next((key for key in keys.keys if key.key_id == key_id), None)
    if found is None:
        raise NotFound(f"there is no signing key {key_id[:64]}", key_id=key_id[:64])
    if found.state is KeyState.REVOKED:
        raise InvalidRequest(f"the signing key {key_id} is revoked already", field="key_id")
    gone = replace(found, state=KeyState.REVOKED, not_after=int(now))
    rest = tuple(gone if key is found else key for key in keys.keys)
    return _next(keys, (_active(fresh, now), *rest) if found.state is KeyState.ACTIVE else rest, now)


def _active(public_bytes: bytes, now: float) -> PublicKey:
    return PublicKey(public_bytes=public_bytes, state=KeyState.ACTIVE, not_before=int(now))


def _next(keys: KeySet, changed: tuple[PublicKey, ...], now: float) -> KeySet:
    """With what nobody needs any more left out: retired keys, and revoked ones of long ago. Newest first."""
    gone = [key for key in changed if key.state is KeyState.REVOKED][:_LISTED_REVOKED]
    kept = tuple(
        key
        for key in changed
        if key in gone or (key.state is not KeyState.REVOKED and (key.not_after is None or key.not_after > now))
    )
    if len(kept) > MAX_KEYS:
        raise InvalidRequest(
            f"a key set holds {MAX_KEYS} keys: wait for retiring ones, or revoke them", field="overlap"
        )
    # As the controller's epoch: a controller that was restored from an old copy is ahead of its nodes again at once.
    return replace(keys, serial=max(keys.serial + 1, int(now)), keys=kept)
