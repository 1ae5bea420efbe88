"""Key sets: one encoding, believed under one root, for one organization, never backwards."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from shovey_trio.core.trust.key_sets import (
    KEY_SET_DOMAIN,
    MAX_KEY_SET_BYTES,
    MAX_KEYS,
    KeySet,
    KeySetRefusal,
    KeySetRefused,
    KeyState,
    PublicKey,
    decode_key_set,
    encode_key_set,
    sign_key_set,
    verify_key_set,
)
from shovey_trio.core.trust.orders import MAX_CLOCK_SKEW, RefusalReason

ROOT = Ed25519PrivateKey.from_private_bytes(b"r" * 32)
ROOT_PUBLIC = ROOT.public_key().public_bytes_raw()
OTHER_ROOT = Ed25519PrivateKey.from_private_bytes(b"s" * 32)

_times = st.integers(0, 2**40)


@st.composite
def key_sets(draw: st.DrawFn) -> KeySet:
    publics = draw(st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=6, unique=True))
    active = draw(st.integers(0, len(publics) - 1))
    return KeySet(
        organization=draw(st.text(min_size=1, max_size=20)),
        serial=draw(st.integers(1, 2**50)),
        keys=tuple(
            PublicKey(
                public_bytes=public,
                state=KeyState.ACTIVE
                if number == active
                else draw(st.sampled_from([KeyState.RETIRING, KeyState.REVOKED])),
                not_before=draw(_times),
                not_after=draw(st.none() | _times),
            )
            for number, public in enumerate(publics)
        ),
    )


def make_set(**changes: Any) -> KeySet:
    keys = KeySet(
        organization="acme",
        serial=5,
        keys=(
            PublicKey(public_bytes=b"a" * 32, state=KeyState.ACTIVE, not_before=2000),
            PublicKey(public_bytes=b"b" * 32, state=KeyState.RETIRING, not_before=1000, not_after=9000),
            PublicKey(public_bytes=b"c" * 32, state=KeyState.REVOKED, not_before=500, not_after=600),
        ),
    )
    return replace(keys, **changes)


SIGNED = sign_key_set(encode_key_set(make_set()), ROOT)


@given(key_sets())
def test_a_signed_set_is_what_was_signed(keys: KeySet) -> None:
    signed = sign_key_set(encode_key_set(keys), ROOT)
    assert verify_key_set(signed, ROOT_PUBLIC, keys.organization, keys.serial) == keys


@given(key_sets(), key_sets())
def test_different_sets_have_different_bytes_and_equal_sets_equal_ones(one: KeySet, other: KeySet) -> None:
    assert (encode_key_set(one) == encode_key_set(other)) == (one == other)


def test_the_form_is_what_the_documentation_shows() -> None:
    keys = KeySet(
        organization="default",
        serial=2,
        keys=(PublicKey(public_bytes=b"\xab" * 32, state=KeyState.ACTIVE, not_before=1700000000),),
    )
    key = b'{"not_after":null,"not_before":1700000000,"public_key":"' + b"ab" * 32 + b'","state":"active"}'
    assert encode_key_set(keys) == b'{"format":1,"keys":[' + key + b'],"organization":"default","serial":2}'


@pytest.mark.parametrize(
    ("root", "organization", "minimum_serial", "refusal"),
    [
        (OTHER_ROOT.public_key().public_bytes_raw(), "acme", 0, KeySetRefusal.WRONG_ROOT),
        (b"short", "acme", 0, KeySetRefusal.WRONG_ROOT),
        (ROOT_PUBLIC, "other", 0, KeySetRefusal.OTHER_ORGANIZATION),
        (ROOT_PUBLIC, "acme", 6, KeySetRefusal.OLD_SERIAL),
    ],
)
def test_a_set_holds_for_its_root_its_organization_and_not_below_a_serial(
    root: bytes, organization: str, minimum_serial: int, refusal: KeySetRefusal
) -> None:
    assert verify_key_set(SIGNED, ROOT_PUBLIC, "acme", 5) == make_set()
    with pytest.raises(KeySetRefused) as caught:
        verify_key_set(SIGNED, root, organization, minimum_serial)
    assert caught.value.refusal is refusal


@given(st.integers(0, len(SIGNED) - 1), st.integers(1, 255))
def test_no_changed_byte_survives(position: int, change: int) -> None:
    spoilt = bytearray(SIGNED)
    spoilt[position] ^= change
    with pytest.raises(KeySetRefused):
        verify_key_set(bytes(spoilt), ROOT_PUBLIC, "acme")


@given(st.binary(max_size=200))
def test_garbage_is_refused_and_breaks_nothing(data: bytes) -> None:
    with pytest.raises(KeySetRefused):
        verify_key_set(data, ROOT_PUBLIC, "acme")
    with pytest.raises(KeySetRefused):
        decode_key_set(data)


def test_a_signature_for_anything_else_is_none_for_a_key_set() -> None:
    body = encode_key_set(make_set())
    assert ROOT.sign(KEY_SET_DOMAIN + body) + body == SIGNED
    with pytest.raises(KeySetRefused):
        verify_key_set(ROOT.sign(body) + body, ROOT_PUBLIC, "acme")


def _spelled(change: dict[str, Any] | None = None, key: dict[str, Any] | None = None, **style: Any) -> bytes:
    document = json.loads(encode_key_set(make_set())) | (change or {})
    if key is not None:
        document["keys"] = [document["keys"][0] | key, *document["keys"][1:]]
    style = {"sort_keys": True, "separators": (",", ":")} | style
    return json.dumps(document, **style).encode()


def test_the_spelling_helper_changes_nothing_by_itself() -> None:
    assert decode_key_set(_spelled()) == make_set()


@pytest.mark.parametrize(
    "body",
    [
        _spelled(separators=(", ", ": ")),
        _spelled(sort_keys=False) + b"\n",
        _spelled({"extra": 1}),
        _spelled({"format": 2}),
        _spelled({"format": True}),
        _spelled({"serial": 0}),
        _spelled({"serial": 5.0}),
        _spelled({"serial": True}),
        _spelled({"serial": "5"}),
        _spelled({"serial": 2**60}),
        _spelled({"organization": ""}),
        _spelled({"organization": ["acme"]}),
        _spelled({"keys": []}),
        _spelled({"keys": {}}),
        _spelled(key={"state": "retiring"}),
        _spelled(key={"state": "signing"}),
        _spelled(key={"public_key": "ab" * 31}),
        _spelled(key={"public_key": ("AB" * 32)}),
        _spelled(key={"public_key": "61" * 32, "not_before": -1}),
        _spelled(key={"not_before": 2000.0}),
        _spelled(key={"not_after": "never"}),
        _spelled(key={"public_key": "62" * 32}),
        b"[" * (MAX_KEY_SET_BYTES - 1),
        b" " * (MAX_KEY_SET_BYTES + 1),
        b"null",
        b"",
    ],
)
def test_nothing_is_signed_or_believed_but_the_canonical_form(body: bytes) -> None:
    with pytest.raises(KeySetRefused) as caught:
        sign_key_set(body, ROOT)
    assert caught.value.refusal is KeySetRefusal.MALFORMED
    with pytest.raises(KeySetRefused) as caught:
        verify_key_set(ROOT.sign(KEY_SET_DOMAIN + body) + body, ROOT_PUBLIC, "acme")
    assert caught.value.refusal is KeySetRefusal.MALFORMED


def test_a_full_set_fits_and_one_key_more_does_not() -> None:
    def with_keys(count: int) -> KeySet:
        rest = (
            PublicKey(
                public_bytes=number.to_bytes(32, "big"), state=KeyState.RETIRING, not_before=2**52, not_after=2**52
            )
            for number in range(count - 1)
        )
        return make_set(organization="o" * 64, keys=(make_set().keys[0], *rest))

    assert decode_key_set(encode_key_set(with_keys(MAX_KEYS))) == with_keys(MAX_KEYS)
    with pytest.raises(ValueError, match="65 keys"):
        encode_key_set(with_keys(MAX_KEYS + 1))


@pytest.mark.parametrize(
    ("key", "now", "found"),
    [
        (0, 2000.0, None),
        (0, 1e12, None),
        (0, 0.0, None),  # a clock that went back takes no key away
        (1, 9000.0 + MAX_CLOCK_SKEW, None),
        (1, 9000.0 + MAX_CLOCK_SKEW + 1, RefusalReason.KEY_NOT_VALID),
        (2, 550.0, RefusalReason.REVOKED_KEY),
    ],
)
def test_a_key_verifies_by_its_state_and_within_its_time(key: int, now: float, found: RefusalReason | None) -> None:
    keys = make_set()
    answer = keys.find(keys.keys[key].key_id, now)
    assert answer == (keys.keys[key] if found is None else found)
    assert (keys.keys[key] in keys.usable(now)) == (found is None)


def test_a_key_that_is_not_in_the_set_is_unknown() -> None:
    assert make_set().find("0" * 16, 2000.0) is RefusalReason.UNKNOWN_KEY
