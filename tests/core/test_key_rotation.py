"""The sets that rotations and revocations lead to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shovey_trio.core.errors import InvalidRequest, NotFound
from shovey_trio.core.trust.key_rotation import DEFAULT_OVERLAP, first_set, revoked, rotated
from shovey_trio.core.trust.key_sets import MAX_KEYS, KeySet, KeyState, PublicKey, decode_key_set, encode_key_set
from shovey_trio.core.trust.orders import RefusalReason

NOW = 1_700_000_000.0


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def states(keys: KeySet) -> list[tuple[int, str]]:
    return [(int.from_bytes(key.public_bytes, "big"), key.state.value) for key in keys.keys]


def test_a_rotation_keeps_the_old_key_verifying_for_the_overlap() -> None:
    first = first_set("acme", key(1), now=NOW)
    second = rotated(first, key(2), now=NOW + 10, overlap=100.0)
    assert (second.serial, states(second)) == (int(NOW + 10), [(2, "active"), (1, "retiring")])
    old = second.keys[1]
    assert old.not_after == int(NOW + 110)
    assert isinstance(second.find(old.key_id, NOW + 100), PublicKey)


def test_a_controller_restored_from_an_old_copy_is_ahead_of_its_nodes_with_its_next_change() -> None:
    copy = first_set("acme", key(1), now=NOW)
    nodes_know = rotated(rotated(copy, key(2), now=NOW + 1), key(3), now=NOW + 2)
    assert rotated(copy, key(4), now=NOW + 3).serial > nodes_know.serial


def test_two_changes_within_one_second_have_two_serials() -> None:
    second = rotated(first_set("acme", key(1), now=NOW), key(2), now=NOW)
    assert rotated(second, key(3), now=NOW).serial == second.serial + 1


def test_what_has_retired_is_gone_with_the_next_change() -> None:
    keys = rotated(first_set("acme", key(1), now=NOW), key(2), now=NOW, overlap=100.0)
    assert states(rotated(keys, key(3), now=NOW + 99)) == [(3, "active"), (2, "retiring"), (1, "retiring")]
    assert states(rotated(keys, key(3), now=NOW + 100)) == [(3, "active"), (2, "retiring")]


def test_revoking_the_key_that_signs_puts_a_fresh_one_in_its_place() -> None:
    first = first_set("acme", key(1), now=NOW)
    second = revoked(first, first.keys[0].key_id, key(2), now=NOW)
    assert states(second) == [(2, "active"), (1, "revoked")]
    assert second.find(first.keys[0].key_id, NOW) is RefusalReason.REVOKED_KEY


def test_revoking_a_retiring_key_leaves_the_one_that_signs() -> None:
    keys = rotated(first_set("acme", key(1), now=NOW), key(2), now=NOW)
    assert states(revoked(keys, keys.keys[1].key_id, key(3), now=NOW)) == [(2, "active"), (1, "revoked")]


def test_a_key_is_revoked_once_and_must_be_there() -> None:
    first = first_set("acme", key(1), now=NOW)
    gone = first.keys[0].key_id
    second = revoked(first, gone, key(2), now=NOW)
    with pytest.raises(InvalidRequest, match="revoked already"):
        revoked(second, gone, key(3), now=NOW)
    with pytest.raises(NotFound):
        revoked(second, "0" * 16, key(3), now=NOW)


def test_revoked_keys_are_listed_for_a_while_the_newest_longest() -> None:
    keys = first_set("acme", key(1), now=NOW)
    for number in range(2, 40):
        keys = revoked(keys, keys.keys[0].key_id, key(number), now=NOW + number)
    assert len(keys.keys) == 17
    assert states(keys)[:3] == [(39, "active"), (38, "revoked"), (37, "revoked")]


def test_a_set_that_is_full_of_keys_that_still_verify_is_not_rotated() -> None:
    keys = first_set("acme", key(1), now=NOW)
    for number in range(2, MAX_KEYS + 1):
        keys = rotated(keys, key(number), now=NOW)
    with pytest.raises(InvalidRequest, match="64 keys"):
        rotated(keys, key(100), now=NOW)
    assert len(rotated(keys, key(100), now=NOW + DEFAULT_OVERLAP + 1).keys) == 2


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.floats(0, 200)), max_size=30))
def test_any_history_gives_sets_that_can_be_signed_each_with_a_higher_serial(
    history: list[tuple[bool, int, float]],
) -> None:
    keys, now = first_set("acme", key(0), now=NOW), NOW
    for number, (rotate, which, passed) in enumerate(history, start=1):
        before, now = keys, now + passed
        named = keys.keys[which % len(keys.keys)]
        if rotate:
            keys = rotated(keys, key(number), now=now, overlap=100.0)
        elif named.state is not KeyState.REVOKED:
            keys = revoked(keys, named.key_id, key(number), now=now)
        assert decode_key_set(encode_key_set(keys)) == keys
        assert keys is before or keys.serial == max(before.serial + 1, int(now))
