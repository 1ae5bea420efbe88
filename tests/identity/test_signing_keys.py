from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shovey_trio.core.trust.key_sets import KeyState
from shovey_trio.core.trust.order_signing import SigningKey, sign_order, verify_order
from shovey_trio.identity.files import FileUnusable, InsecureFile, write_secret
from shovey_trio.identity.layout import DataDirectory
from shovey_trio.identity.root_keys import KeyRing, make_keys, revocation, root_key_pem, rotation
from shovey_trio.identity.signing_keys import SigningKeyFile, SigningKeys, make_signing_key

NOW = 1_700_000_000.0
DAY = 86_400.0


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    """Keys with one rotation behind them."""
    directory, root = DataDirectory(tmp_path), Ed25519PrivateKey.generate()
    file = SigningKeyFile(directory.signing_keys("acme"))
    file.path.parent.mkdir(mode=0o700)
    write_secret(directory.root_key("acme"), root_key_pem(root))
    file.save(make_keys("acme", root, now=NOW - DAY / 2))
    ring = KeyRing(directory, "acme")
    ring.apply(rotation(NOW, overlap=DAY))
    return ring


def file_of(ring: KeyRing) -> SigningKeyFile:
    return SigningKeyFile(ring.proposal_path.with_name("acme.json"))


def private(keys: SigningKeys, key_id: str) -> SigningKey:
    return SigningKey(key_id=key_id, private_key=keys.private_keys[key_id], created_at=0.0)


def test_keys_survive_their_file(ring: KeyRing) -> None:
    keys = ring.load()
    file_of(ring).save(keys)
    again = ring.load()
    assert again.published() == keys.published()
    assert again.active.private_key.private_bytes_raw() == keys.active.private_key.private_bytes_raw()
    assert set(again.private_keys) == {key.key_id for key in keys.keys.keys}


def test_an_order_signed_with_any_loaded_key_verifies_against_the_published_set(ring: KeyRing) -> None:
    keys = ring.load()
    for key in keys.keys.keys:
        signed = sign_order(b"order", private(keys, key.key_id))
        assert verify_order(signed, keys.published().keys, NOW) is None


def test_doorbells_are_signed_with_the_oldest_key_that_verifies(ring: KeyRing) -> None:
    keys = ring.load()
    active, retiring = keys.keys.keys
    assert keys.for_doorbells(NOW) is keys.private_keys[retiring.key_id]
    assert keys.for_doorbells(NOW + DAY) is keys.private_keys[active.key_id]
    ring.apply(revocation(retiring.key_id, NOW + 1))
    assert ring.load().for_doorbells(NOW + 1) is not None
    assert ring.load().for_doorbells(NOW + 1).private_bytes_raw() == keys.active.private_key.private_bytes_raw()


def test_the_file_is_refused_when_others_can_read_it(ring: KeyRing) -> None:
    file_of(ring).path.chmod(0o640)
    with pytest.raises(InsecureFile, match="0640"):
        ring.load()


def test_another_organizations_keys_are_refused(ring: KeyRing) -> None:
    with pytest.raises(FileUnusable, match="'acme'"):
        file_of(ring).load("other")


def foreign_key() -> dict[str, str]:
    key = make_signing_key(NOW)
    return {key.key_id: b64encode(key.private_key.private_bytes_raw()).decode()}


@pytest.mark.parametrize(
    "change",
    [
        {"format": 3},
        {"organization": "other"},
        {"root_public_key": "ab" * 32},
        {"root_public_key": "x"},
        {"signed": b64encode(b"x" * 200).decode()},
        {"signed": 5},
        {"private_keys": {}},
        {"private_keys": []},
        {"private_keys": foreign_key()},
        {"private_keys": {"0" * 16: b64encode(b"k" * 32).decode()}},
    ],
)
def test_a_damaged_file_is_named_and_not_quoted(ring: KeyRing, change: dict[str, Any]) -> None:
    path = file_of(ring).path
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, **change}))
    with pytest.raises(FileUnusable) as caught:
        ring.load()
    assert str(path) in caught.value.message
    for secret in document["private_keys"].values():
        assert secret not in caught.value.message


def test_who_can_write_the_file_but_has_no_root_key_cannot_bring_a_key_in(ring: KeyRing) -> None:
    """The nodes would refuse such a set anyhow; here it is noticed before it is used."""
    path = file_of(ring).path
    document = json.loads(path.read_text())
    theirs = make_keys("acme", Ed25519PrivateKey.generate(), now=NOW)
    document["signed"] = b64encode(theirs.signed).decode()
    document["private_keys"] |= {
        theirs.active.key_id: b64encode(theirs.active.private_key.private_bytes_raw()).decode()
    }
    path.write_text(json.dumps(document))
    with pytest.raises(FileUnusable, match="KeySetRefused"):
        ring.load()


# --- files from before there were root keys


def old_entry(key: SigningKey, state: str) -> dict[str, Any]:
    secret = b64encode(key.private_key.private_bytes_raw()).decode()
    return {"key_id": key.key_id, "state": state, "created_at": key.created_at, "private_key": secret}


@pytest.fixture
def old(tmp_path: Path) -> tuple[KeyRing, SigningKey, SigningKey]:
    """A data directory of an older version: the active key and a retiring one."""
    active, retiring = make_signing_key(NOW - 10.5), make_signing_key(NOW - 99.5)
    directory = DataDirectory(tmp_path)
    document = {
        "format": 1,
        "organization": "acme",
        "serial": 7,
        "keys": [old_entry(active, "active"), old_entry(retiring, "retiring")],
    }
    directory.signing_keys("acme").parent.mkdir(mode=0o700)
    write_secret(directory.signing_keys("acme"), json.dumps(document).encode())
    return KeyRing(directory, "acme"), active, retiring


def test_a_file_without_a_root_loads_and_gets_one_that_signs_the_same_keys(
    old: tuple[KeyRing, SigningKey, SigningKey],
) -> None:
    ring, active, retiring = old
    assert (ring.load().keys.serial, ring.load().signed) == (7, b"")
    upgraded = ring.ensure_root(NOW)
    assert upgraded.keys.serial > 7  # agents that know no root take it for news
    assert [(key.key_id, key.state) for key in upgraded.keys.keys] == [
        (active.key_id, KeyState.ACTIVE),
        (retiring.key_id, KeyState.RETIRING),
    ]
    assert upgraded.active.private_key.private_bytes_raw() == active.private_key.private_bytes_raw()
    assert ring.root_key_path.stat().st_mode & 0o777 == 0o600
    assert ring.load().published() == upgraded.published()


def test_an_upgrade_happens_once_even_if_it_was_interrupted(old: tuple[KeyRing, SigningKey, SigningKey]) -> None:
    ring, _, _ = old
    root = Ed25519PrivateKey.generate()
    write_secret(ring.root_key_path, root_key_pem(root))  # it ended between the two files
    upgraded = ring.ensure_root(NOW)
    assert upgraded.root_public_key == root.public_key().public_bytes_raw()
    assert ring.ensure_root(NOW + 1).published() == upgraded.published()


@pytest.mark.parametrize(
    "change",
    [
        {"serial": 0},
        {"serial": "7"},
        {"keys": []},
        {"keys": None},
        {"keys": [{"key_id": "0", "state": "active", "created_at": 1.0, "private_key": "AAAA"}]},
    ],
)
def test_a_damaged_old_file_is_named(old: tuple[KeyRing, SigningKey, SigningKey], change: dict[str, Any]) -> None:
    ring, _, _ = old
    path = file_of(ring).path
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(FileUnusable, match=r"acme\.json"):
        ring.ensure_root(NOW)
    assert not ring.root_key_path.exists()


def test_a_key_under_another_keys_id_or_two_active_keys_are_refused(
    old: tuple[KeyRing, SigningKey, SigningKey],
) -> None:
    ring, _, _ = old
    path = file_of(ring).path
    document = json.loads(path.read_text())
    first, second = document["keys"]
    for keys in ([{**first, "key_id": second["key_id"]}, second], [first, {**second, "state": "active"}], [second]):
        path.write_text(json.dumps({**document, "keys": keys}))
        with pytest.raises(FileUnusable):
            ring.load()
