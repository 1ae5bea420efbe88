from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shovey_trio.core.order_signing import sign_order, verify_order
from shovey_trio.identity.files import FileUnusable, InsecureFile
from shovey_trio.identity.signing_keys import SigningKeyFile, SigningKeys, make_signing_key


def make_keys() -> SigningKeys:
    return SigningKeys(
        organization="acme", serial=7, active=make_signing_key(2000.0), retiring=(make_signing_key(1000.0),)
    )


def test_keys_survive_their_file(tmp_path: Path) -> None:
    keys, file = make_keys(), SigningKeyFile(tmp_path / "acme.json")
    file.save(keys)
    loaded = file.load("acme")
    assert loaded.published() == keys.published()
    assert loaded.active.private_key.private_bytes_raw() == keys.active.private_key.private_bytes_raw()


def test_an_order_signed_with_any_loaded_key_verifies_against_the_published_set(tmp_path: Path) -> None:
    file = SigningKeyFile(tmp_path / "acme.json")
    file.save(make_keys())
    loaded = file.load("acme")
    published = loaded.published().by_id()
    for key in (loaded.active, *loaded.retiring):
        assert verify_order(sign_order(b"order", key), published) is None


def test_exactly_the_active_key_is_published_as_active() -> None:
    keys = make_keys()
    published = keys.published()
    assert [key.key_id for key in published.keys if key.active] == [keys.active.key_id]
    assert (published.organization, published.serial, len(published.keys)) == ("acme", 7, 2)


def test_the_file_is_refused_when_others_can_read_it(tmp_path: Path) -> None:
    file = SigningKeyFile(tmp_path / "acme.json")
    file.save(make_keys())
    file.path.chmod(0o640)
    with pytest.raises(InsecureFile):
        file.load("acme")


def test_another_organizations_keys_are_refused(tmp_path: Path) -> None:
    file = SigningKeyFile(tmp_path / "acme.json")
    file.save(make_keys())
    with pytest.raises(FileUnusable, match="'acme'"):
        file.load("other")


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"serial": 0},
        {"serial": "7"},
        {"keys": []},
        {"keys": None},
        {"keys": [{"key_id": "0", "state": "active", "created_at": 1.0, "private_key": "AAAA"}]},
    ],
)
def test_a_damaged_file_is_named_and_not_quoted(tmp_path: Path, change: dict[str, Any]) -> None:
    file = SigningKeyFile(tmp_path / "acme.json")
    file.save(make_keys())
    document = json.loads(file.path.read_text())
    secret = document["keys"][0]["private_key"]
    file.path.write_text(json.dumps({**document, **change}))
    with pytest.raises(FileUnusable) as caught:
        file.load("acme")
    assert str(file.path) in caught.value.message
    assert secret not in caught.value.message


def test_a_key_under_another_keys_id_or_two_active_keys_are_refused(tmp_path: Path) -> None:
    file = SigningKeyFile(tmp_path / "acme.json")
    file.save(make_keys())
    document = json.loads(file.path.read_text())
    first, second = document["keys"]
    for keys in ([{**first, "key_id": second["key_id"]}, second], [first, {**second, "state": "active"}], [second]):
        file.path.write_text(json.dumps({**document, "keys": keys}))
        with pytest.raises(FileUnusable):
            file.load("acme")
