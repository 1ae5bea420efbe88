"""What changes a node's mind about its controller's keys, and what does not."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from shovey_trio.core.trust.key_rotation import first_set, revoked, rotated
from shovey_trio.core.trust.key_sets import (
    KeySet,
    KeySetRefusal,
    KeySetRefused,
    PublicKey,
    encode_key_set,
    sign_key_set,
)
from shovey_trio.core.trust.key_trust import KeyTrust, PublishedKeys
from shovey_trio.core.trust.orders import RefusalReason

NOW = 1_700_000_000.0
ROOT = Ed25519PrivateKey.from_private_bytes(b"r" * 32)
THIEF = Ed25519PrivateKey.from_private_bytes(b"t" * 32)


def published(keys: KeySet, root: Ed25519PrivateKey | None = ROOT) -> PublishedKeys:
    if root is None:
        return PublishedKeys(keys=keys)
    public = root.public_key().public_bytes_raw()
    return PublishedKeys(keys=keys, signed=sign_key_set(encode_key_set(keys), root), root_public_key=public)


FIRST = first_set("acme", b"a" * 32, now=NOW)
SECOND = rotated(FIRST, b"b" * 32, now=NOW + 1)
THIRD = revoked(SECOND, FIRST.keys[0].key_id, b"c" * 32, now=NOW + 2)
NOBODY = KeyTrust(organization="acme")


def refusal(trust: KeyTrust, offered: PublishedKeys) -> KeySetRefusal:
    with pytest.raises(KeySetRefused) as caught:
        trust.learned(offered)
    return caught.value.refusal


def test_a_node_that_knows_nothing_finds_no_key() -> None:
    assert NOBODY.find(FIRST.keys[0].key_id, NOW) is RefusalReason.UNKNOWN_KEY
    assert NOBODY.usable(NOW) == ()


def test_a_revoked_key_is_worth_nothing_from_the_set_on_that_revokes_it() -> None:
    trust = NOBODY.learned(published(SECOND))
    stolen = FIRST.keys[0].key_id
    assert isinstance(trust.find(stolen, NOW), PublicKey)
    assert trust.learned(published(THIRD)).find(stolen, NOW) is RefusalReason.REVOKED_KEY


def test_an_old_set_does_not_bring_a_revoked_key_back() -> None:
    trust = NOBODY.learned(published(THIRD))
    assert refusal(trust, published(SECOND)) is KeySetRefusal.OLD_SERIAL
    assert refusal(trust, published(FIRST)) is KeySetRefusal.OLD_SERIAL


def test_who_has_a_root_believes_nobody_elses_and_nothing_in_plain() -> None:
    trust = NOBODY.learned(published(FIRST))
    theirs = rotated(SECOND, b"x" * 32, now=NOW)
    assert refusal(trust, published(theirs, THIEF)) is KeySetRefusal.WRONG_ROOT
    assert refusal(trust, published(theirs, None)) is KeySetRefusal.WRONG_ROOT
    named_ours = PublishedKeys(
        keys=theirs, signed=published(theirs, THIEF).signed, root_public_key=ROOT.public_key().public_bytes_raw()
    )
    assert refusal(trust, named_ours) is KeySetRefusal.WRONG_ROOT


def test_the_plain_set_beside_a_signed_one_is_ignored() -> None:
    theirs = rotated(SECOND, b"x" * 32, now=NOW)
    good = published(SECOND)
    mixed = PublishedKeys(keys=theirs, signed=good.signed, root_public_key=good.root_public_key)
    assert NOBODY.learned(mixed).keys == SECOND
    assert NOBODY.learned(published(FIRST)).learned(mixed).keys == SECOND


def test_of_two_sets_with_one_serial_the_first_stays() -> None:
    one, other = rotated(FIRST, b"x" * 32, now=NOW), rotated(FIRST, b"y" * 32, now=NOW)
    trust = NOBODY.learned(published(one))
    assert refusal(trust, published(other)) is KeySetRefusal.OLD_SERIAL
    assert trust.learned(published(one)) is trust


def test_a_node_without_a_root_takes_the_first_one_that_signs_for_itself_and_keeps_it() -> None:
    before = NOBODY.learned(published(FIRST, None))
    assert before.root_public_key == b""
    after = before.learned(published(SECOND))
    assert after.root_public_key == ROOT.public_key().public_bytes_raw()
    assert refusal(after, published(THIRD, THIEF)) is KeySetRefusal.WRONG_ROOT
    assert refusal(after, published(THIRD, None)) is KeySetRefusal.WRONG_ROOT


def test_a_first_root_cannot_be_presented_with_an_old_set() -> None:
    before = NOBODY.learned(published(SECOND, None))
    assert refusal(before, published(FIRST)) is KeySetRefusal.OLD_SERIAL
    assert before.learned(published(SECOND)).root_public_key  # the same set, now signed


def test_a_root_that_is_given_beforehand_is_the_only_one() -> None:
    told = KeyTrust(organization="acme", root_public_key=ROOT.public_key().public_bytes_raw())
    assert refusal(told, published(FIRST, THIEF)) is KeySetRefusal.WRONG_ROOT
    assert refusal(told, published(FIRST, None)) is KeySetRefusal.WRONG_ROOT
    assert told.learned(published(FIRST)).keys == FIRST


@pytest.mark.parametrize("root", [ROOT, None])
def test_another_organizations_keys_are_refused(root: Ed25519PrivateKey | None) -> None:
    theirs = first_set("evil", b"a" * 32, now=NOW)
    assert refusal(NOBODY, published(theirs, root)) is KeySetRefusal.OTHER_ORGANIZATION


@given(st.lists(st.sampled_from([FIRST, SECOND, THIRD]), max_size=8), st.booleans())
def test_in_whatever_order_sets_arrive_the_serial_only_grows(offers: list[KeySet], signed: bool) -> None:
    trust = NOBODY
    for keys in offers:
        before = trust.serial
        try:
            trust = trust.learned(published(keys, ROOT if signed else None))
        except KeySetRefused:
            assert keys.serial < before
        assert trust.serial == max(before, keys.serial)


def test_a_plain_set_that_is_none_is_refused() -> None:
    bad = PublicKey(public_bytes=b"short", state=FIRST.keys[0].state, not_before=1)
    for keys in (KeySet(organization="acme", serial=9, keys=()), KeySet(organization="acme", serial=9, keys=(bad,))):
        assert refusal(NOBODY, published(keys, None)) is KeySetRefusal.MALFORMED
