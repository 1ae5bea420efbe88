"""Key sets for tests, made of signing keys at hand."""

from __future__ import annotations

from shovey_trio.core.trust.key_sets import KeySet, KeyState, PublicKey
from shovey_trio.core.trust.order_signing import SigningKey


def key_set_of(organization: str, *keys: SigningKey, serial: int = 1) -> KeySet:
    """A set in which the first key is active and the others are retiring, without an end."""
    return KeySet(
        organization=organization,
        serial=serial,
        keys=tuple(
            PublicKey(
                public_bytes=key.public_bytes,
                state=KeyState.RETIRING if number else KeyState.ACTIVE,
                not_before=int(key.created_at),
            )
            for number, key in enumerate(keys)
        ),
    )
