"""Signatures over orders."""

from __future__ import annotations

from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from lab.signing import key_set_of
from shovey_trio.core.trust.key_sets import KeyState, PublicKey, key_id_of
from shovey_trio.core.trust.order_signing import ORDER_DOMAIN, SigningKey, sign_order, verify_order
from shovey_trio.core.trust.orders import RefusalReason


def _key(seed: bytes) -> SigningKey:
    private = Ed25519PrivateKey.from_private_bytes(seed * 32)
    public = private.public_key().public_bytes_raw()
    return SigningKey(key_id=key_id_of(public), private_key=private, created_at=0.0)


KEY, OTHER = _key(b"k"), _key(b"o")
KEYS = key_set_of("default", KEY, OTHER)
NOW = 1000.0


@given(st.binary(max_size=200))
def test_what_is_signed_is_verified_over_exactly_these_bytes(order: bytes) -> None:
    signed = sign_order(order, KEY)
    assert verify_order(signed, KEYS, NOW) is None
    assert verify_order(replace(signed, order=order + b"\0"), KEYS, NOW) is RefusalReason.BAD_SIGNATURE


@given(st.binary(max_size=100))
def test_no_other_bytes_are_a_signature(signature: bytes) -> None:
    signed = sign_order(b"order", KEY)
    if signature != signed.signature:
        assert verify_order(replace(signed, signature=signature), KEYS, NOW) is RefusalReason.BAD_SIGNATURE


def test_a_signature_belongs_to_its_key_and_to_orders_alone() -> None:
    signed = sign_order(b"order", KEY)
    assert verify_order(replace(signed, key_id=OTHER.key_id), KEYS, NOW) is RefusalReason.BAD_SIGNATURE
    assert verify_order(replace(signed, key_id="0" * 16), KEYS, NOW) is RefusalReason.UNKNOWN_KEY
    bare = replace(signed, signature=KEY.private_key.sign(b"order"))
    assert verify_order(bare, KEYS, NOW) is RefusalReason.BAD_SIGNATURE
    assert KEY.private_key.sign(ORDER_DOMAIN + b"order") == signed.signature


def test_a_key_that_is_no_key_verifies_nothing() -> None:
    class Broken:
        def find(self, key_id: str, now: float) -> PublicKey:
            assert (key_id, now) == (KEY.key_id, NOW)
            return PublicKey(public_bytes=b"short", state=KeyState.ACTIVE, not_before=0)

    assert verify_order(sign_order(b"order", KEY), Broken(), NOW) is RefusalReason.BAD_SIGNATURE


def test_key_ids_are_sixteen_hex_digits_of_the_key() -> None:
    assert len(KEY.key_id) == 16
    assert int(KEY.key_id, 16) >= 0
    assert KEY.key_id != OTHER.key_id
