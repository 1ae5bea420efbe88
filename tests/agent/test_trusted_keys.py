"""What a node believes of its controller's keys survives on its disk, and only moves forward there."""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lab.signing import key_set_of
from shovey_agent.desk.trusted_keys import NoKeys, TrustedKeys
from shovey_trio.core.trust.key_rotation import revoked, rotated
from shovey_trio.core.trust.key_sets import KeySetRefused, PublicKey, encode_key_set, sign_key_set
from shovey_trio.core.trust.key_trust import PublishedKeys
from shovey_trio.core.trust.orders import RefusalReason
from shovey_trio.identity.files import FileUnusable, InsecureFile
from shovey_trio.identity.root_keys import make_keys
from shovey_trio.identity.signing_keys import make_signing_key

NOW = 1_700_000_000.0
ROOT = Ed25519PrivateKey.from_private_bytes(b"r" * 32)
FIRST = make_keys("acme", ROOT, now=NOW).published()
STOLEN = FIRST.keys.keys[0].key_id


def publish(keys: Any) -> PublishedKeys:
    return PublishedKeys(
        keys=keys, signed=sign_key_set(encode_key_set(keys), ROOT), root_public_key=FIRST.root_public_key
    )


ROTATED = publish(rotated(FIRST.keys, make_signing_key(NOW).public_bytes, now=NOW + 10))
REVOKED = publish(revoked(ROTATED.keys, STOLEN, make_signing_key(NOW).public_bytes, now=NOW + 20))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "state" / "signing-keys.json"
    TrustedKeys.unset(path, "acme").learn(FIRST)
    return path


def test_what_was_learned_is_known_after_a_restart(path: Path) -> None:
    assert TrustedKeys.load(path, "acme").learn(ROTATED)
    again = TrustedKeys.load(path, "acme")
    assert (again.serial, again.root_public_key) == (ROTATED.keys.serial, FIRST.root_public_key)
    assert again.usable(NOW) == ROTATED.keys.keys
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_nothing_new_writes_nothing(path: Path) -> None:
    keys = TrustedKeys.load(path, "acme")
    before = path.stat()
    assert not keys.learn(FIRST)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_revocation_cannot_be_undone_by_an_old_set_not_even_after_a_restart(path: Path) -> None:
    TrustedKeys.load(path, "acme").learn(REVOKED)
    again = TrustedKeys.load(path, "acme")
    for old in (ROTATED, FIRST):
        with pytest.raises(KeySetRefused):
            again.learn(old)
    assert again.find(STOLEN, NOW) is RefusalReason.REVOKED_KEY


def test_a_set_that_cannot_be_written_is_in_force_and_written_with_the_next_word(path: Path) -> None:
    keys = TrustedKeys.load(path, "acme")
    moved = path.parent.rename(path.parent.with_name("away"))
    path.parent.write_text("no directory")
    with pytest.raises(OSError, match="state"):
        keys.learn(REVOKED)
    assert keys.find(STOLEN, NOW) is RefusalReason.REVOKED_KEY
    path.parent.unlink()
    moved.rename(path.parent)
    assert TrustedKeys.load(path, "acme").serial == FIRST.keys.serial
    assert keys.learn(REVOKED)
    assert TrustedKeys.load(path, "acme").find(STOLEN, NOW) is RefusalReason.REVOKED_KEY


def test_who_can_write_the_file_but_has_no_root_key_brings_nothing_in(path: Path) -> None:
    document = json.loads(path.read_text())
    theirs = make_keys("acme", Ed25519PrivateKey.generate(), now=NOW + 99)
    path.write_text(json.dumps({**document, "signed": b64encode(theirs.signed).decode()}))
    with pytest.raises(FileUnusable, match="not signed"):
        TrustedKeys.load(path, "acme")


@pytest.mark.parametrize(
    "change",
    [
        {"format": 9},
        {"organization": "other"},
        {"root_public_key": "x"},
        {"root_public_key": None},
        {"signed": "x"},
        {"signed": 1},
    ],
)
def test_a_damaged_file_is_named(path: Path, change: dict[str, Any]) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(FileUnusable, match=r"signing-keys\.json"):
        TrustedKeys.load(path, "acme")


def test_a_missing_or_open_file_or_another_organizations_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(NoKeys, match="enrol"):
        TrustedKeys.load(tmp_path / "nothing.json", "acme")
    with pytest.raises(FileUnusable, match="'acme'"):
        TrustedKeys.load(path, "other")
    path.chmod(0o644)
    with pytest.raises(InsecureFile, match="0644"):
        TrustedKeys.load(path, "acme")


def test_a_file_from_before_there_were_root_keys_is_believed_until_a_root_is_presented(path: Path) -> None:
    key = make_signing_key(NOW)
    entry = {"key_id": key.key_id, "public_key": b64encode(key.public_bytes).decode(), "created_at": NOW + 0.5}
    document = {"format": 1, "organization": "acme", "serial": 3, "keys": [{**entry, "active": True}]}
    path.write_text(json.dumps(document))
    keys = TrustedKeys.load(path, "acme")
    assert (keys.serial, keys.root_public_key) == (3, b"")
    assert isinstance(keys.find(key.key_id, NOW), PublicKey)
    keys.learn(PublishedKeys(keys=key_set_of("acme", key, serial=4)))  # a controller that has no root yet
    assert TrustedKeys.load(path, "acme").serial == 4
    keys.learn(ROTATED)
    assert TrustedKeys.load(path, "acme").root_public_key == FIRST.root_public_key
    with pytest.raises(KeySetRefused):
        keys.learn(PublishedKeys(keys=key_set_of("acme", key, serial=2_000_000_000)))
