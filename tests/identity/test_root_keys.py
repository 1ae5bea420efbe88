"""Changing keys with the root key at hand, and with the root key elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shovey_trio.core.errors import NotFound
from shovey_trio.core.trust.key_sets import KeySetRefusal, KeySetRefused, KeyState, decode_key_set, sign_key_set
from shovey_trio.core.trust.orders import RefusalReason
from shovey_trio.identity.files import FileUnusable, write_secret
from shovey_trio.identity.layout import DataDirectory
from shovey_trio.identity.requests import KeyUnreadable, make_private_key, private_key_pem
from shovey_trio.identity.root_keys import (
    KeyRing,
    RootKeyElsewhere,
    load_root_key,
    make_keys,
    revocation,
    root_key_pem,
    rotation,
)
from shovey_trio.identity.signing_keys import SigningKeyFile

NOW = 1_700_000_000.0


@pytest.fixture
def root() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


@pytest.fixture
def ring(tmp_path: Path, root: Ed25519PrivateKey) -> KeyRing:
    directory = DataDirectory(tmp_path)
    directory.signing_keys("acme").parent.mkdir(mode=0o700)
    write_secret(directory.root_key("acme"), root_key_pem(root))
    SigningKeyFile(directory.signing_keys("acme")).save(make_keys("acme", root, now=NOW))
    return KeyRing(directory, "acme")


@pytest.fixture
def elsewhere(ring: KeyRing) -> KeyRing:
    """With the root key on another machine."""
    ring.root_key_path.unlink()
    return ring


def test_a_rotation_is_one_step_with_the_root_key_at_hand(ring: KeyRing) -> None:
    before = ring.load()
    after = ring.apply(rotation(NOW + 1))
    assert ring.load().published() == after.published()
    assert after.keys.serial > before.keys.serial
    assert after.active.key_id != before.active.key_id
    assert before.active.key_id in after.private_keys  # doorbells are signed with it for the overlap


def test_a_revoked_keys_private_half_is_not_kept(ring: KeyRing) -> None:
    stolen = ring.load().active.key_id
    after = ring.apply(revocation(stolen, NOW + 1))
    assert after.keys.find(stolen, NOW + 1) is RefusalReason.REVOKED_KEY
    assert set(ring.load().private_keys) == {after.active.key_id}


def test_a_change_that_is_refused_changes_nothing(ring: KeyRing) -> None:
    before = ring.load().published()
    with pytest.raises(NotFound):
        ring.apply(revocation("0" * 16, NOW))
    assert ring.load().published() == before


def test_another_root_key_put_in_the_place_of_the_right_one_is_noticed(ring: KeyRing) -> None:
    before = ring.load().published()
    write_secret(ring.root_key_path, root_key_pem(Ed25519PrivateKey.generate()))
    with pytest.raises(KeySetRefused):
        ring.apply(rotation(NOW))
    assert ring.load().published() == before


def test_without_the_root_key_there_is_no_change_but_by_proposal(elsewhere: KeyRing, root: Ed25519PrivateKey) -> None:
    before = elsewhere.load()
    with pytest.raises(RootKeyElsewhere, match="key import"):
        elsewhere.apply(rotation(NOW + 1))
    body = elsewhere.propose(rotation(NOW + 1))
    assert elsewhere.load().published() == before.published()  # nothing holds before it is signed
    after = elsewhere.import_signed(sign_key_set(body, root))
    assert after.keys == decode_key_set(body)
    assert elsewhere.load().active.key_id == after.active.key_id != before.active.key_id
    assert not elsewhere.proposal_path.exists()


def test_a_proposal_holds_no_private_key_and_what_waits_for_it_is_closed_to_others(elsewhere: KeyRing) -> None:
    body = elsewhere.propose(rotation(NOW + 1))
    assert elsewhere.proposal_path.stat().st_mode & 0o777 == 0o600
    fresh = next(key for key in decode_key_set(body).keys if key.state is KeyState.ACTIVE)
    assert fresh.public_bytes.hex().encode() in body
    assert b"private" not in body


def test_only_the_organizations_root_signs_and_only_forward(elsewhere: KeyRing, root: Ed25519PrivateKey) -> None:
    stale = elsewhere.propose(rotation(NOW + 1))
    with pytest.raises(KeySetRefused) as caught:
        elsewhere.import_signed(sign_key_set(stale, Ed25519PrivateKey.generate()))
    assert caught.value.refusal is KeySetRefusal.WRONG_ROOT
    elsewhere.import_signed(sign_key_set(stale, root))
    with pytest.raises(KeySetRefused) as caught:
        elsewhere.import_signed(sign_key_set(stale, root))
    assert caught.value.refusal is KeySetRefusal.OLD_SERIAL


def test_a_set_whose_active_key_is_not_here_is_refused(elsewhere: KeyRing, root: Ed25519PrivateKey) -> None:
    lost = elsewhere.propose(rotation(NOW + 1))
    elsewhere.propose(rotation(NOW + 2))  # replaces the first, private key and all
    with pytest.raises(FileUnusable, match="private half"):
        elsewhere.import_signed(sign_key_set(lost, root))


def test_a_damaged_proposal_is_named(elsewhere: KeyRing, root: Ed25519PrivateKey) -> None:
    body = elsewhere.propose(rotation(NOW + 1))
    for spoilt in ("garbage", "{}", '{"private_keys": 5}', '{"private_keys": {"0": "AAAA"}}'):
        elsewhere.proposal_path.write_text(spoilt)
        with pytest.raises(FileUnusable, match=r"acme\.proposed\.json"):
            elsewhere.import_signed(sign_key_set(body, root))


def test_a_root_key_comes_back_from_its_file_and_nothing_else_does(root: Ed25519PrivateKey, tmp_path: Path) -> None:
    file = tmp_path / "root.key"
    write_secret(file, root_key_pem(root))
    assert load_root_key(file).private_bytes_raw() == root.private_bytes_raw()
    for pem in (b"garbage", private_key_pem(make_private_key())):
        write_secret(file, pem)
        with pytest.raises(KeyUnreadable, match=r"root\.key: "):
            load_root_key(file)
