"""Keys for old nodes: one node, one key, and no reset that leaves a node behind."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from lab.memory_store import MemoryStore
from shovey_trio.identity.files import FileUnusable, InsecureFile
from shovey_trio.identity.layout import DataDirectory
from shovey_trio.nursery.registry import NodeRegistry
from shovey_trio.shovey.keys import (
    SCHOB_KEYS,
    SchobKey,
    SchobKeyFile,
    SchobKeys,
    make_schob_key,
    parse_schob_keys,
    schob_keys_document,
)
from shovey_trio.shovey.route.keyring import SchobKeyring


@pytest.fixture(scope="module")
def made() -> tuple[SchobKey, SchobKey, SchobKey]:
    first, second, third = (make_schob_key(at) for at in (100.0, 200.0, 300.0))
    return first, second, third


@pytest.fixture
def keys(made: tuple[SchobKey, SchobKey, SchobKey]) -> SchobKeys:
    return SchobKeys(organization="o", keys=made[:2])


def test_a_node_holds_the_key_there_was_when_it_was_registered(keys: SchobKeys) -> None:
    old, new = keys.keys
    assert [keys.key_of("n", registered_at=at) for at in (50.0, 150.0, 200.0, 250.0)] == [old, old, new, new]


def test_what_a_node_has_shown_outweighs_when_it_came(keys: SchobKeys) -> None:
    old, new = keys.keys
    assert keys.with_held({"n": new.key_id}).key_of("n", registered_at=50.0) is new
    assert keys.with_held({"n": old.key_id}).key_of("n", registered_at=250.0) is old
    assert keys.with_held({"n": "a key that is gone"}).key_of("n", registered_at=150.0) is old


def test_the_other_key_to_try_is_the_newest_one_that_was_not_tried(
    keys: SchobKeys, made: tuple[SchobKey, SchobKey, SchobKey]
) -> None:
    first, second, third = made
    three = keys.with_key(third)
    assert three.other_than(first.key_id) is third
    assert three.other_than(third.key_id) is second
    assert replace(keys, keys=(first,)).other_than(first.key_id) is None


def test_a_key_stays_as_long_as_one_node_holds_it(keys: SchobKeys) -> None:
    old, new = keys.keys
    registered = {"a": 150.0, "b": 150.0}
    one_moved = keys.with_held({"a": new.key_id}).pruned(registered)
    assert one_moved.keys == (old, new)
    moved = one_moved.with_held({"b": new.key_id}).pruned(registered)
    assert moved.keys == (new,)
    assert keys.pruned({}).keys == (new,)
    assert keys.with_held({"gone": old.key_id}).pruned({"a": 250.0}).held == {}


def test_a_reset_is_remembered_for_a_day(keys: SchobKeys, made: tuple[SchobKey, SchobKey, SchobKey]) -> None:
    soon, later = replace(made[2], created_at=300.0), replace(made[2], created_at=300.0 + 86_400)
    asked = keys.with_key(soon, request_id="a")
    assert parse_schob_keys(schob_keys_document(asked)).resets == {"a": 300.0}
    assert asked.pruned({}).resets == {"a": 300.0}
    assert asked.with_key(later, request_id="b").resets == {"b": later.created_at}


async def test_one_request_makes_one_key_also_after_a_restart(tmp_path: Path, keys: SchobKeys) -> None:
    file = SchobKeyFile(tmp_path / "o.legacy.json")
    file.save(keys)

    async def keyring() -> SchobKeyring:
        opened = SchobKeyring(lambda: {"o": file}, registry=NodeRegistry(MemoryStore()))
        await opened.load()
        return opened

    first = await keyring()
    assert await first.reset("o", "recorded")
    made = first.public_key("o")
    assert made != keys.current.public_pem
    for one in (first, await keyring()):
        assert not await one.reset("o", "recorded")
        assert one.public_key("o") == made
    assert await first.reset("o", "another")
    assert not await first.reset("o", "recorded")


def test_the_file_is_closed_to_others_and_read_back(tmp_path: Path, keys: SchobKeys) -> None:
    file = SchobKeyFile(tmp_path / "signing" / "o.legacy.json")
    file.save(keys.with_held({"n": keys.current.key_id}))
    assert file.path.stat().st_mode & 0o777 == 0o600
    read = file.load("o")
    assert [key.key_id for key in read.keys] == [key.key_id for key in keys.keys]
    assert read.held == {"n": keys.current.key_id}
    assert read.current.public_pem == keys.current.public_pem
    file.path.chmod(0o644)
    with pytest.raises(InsecureFile):
        file.load("o")


@pytest.mark.parametrize("text", [b"", b"{}", b'{"format": 1, "keys": [], "organization": "o", "held": {}}', b"[]"])
def test_a_damaged_file_is_named_and_not_quoted(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "o.legacy.json"
    path.touch(mode=0o600)
    path.write_bytes(text)
    with pytest.raises(FileUnusable, match="not a file of legacy keys"):
        SchobKeyFile(path).load("o")


def test_another_organization_s_file_is_refused(tmp_path: Path, keys: SchobKeys) -> None:
    file = SchobKeyFile(tmp_path / "o.legacy.json")
    file.save(keys)
    with pytest.raises(FileUnusable):
        file.load("p")


def test_a_data_directory_from_before_gets_a_key_once(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path)
    made = SCHOB_KEYS.ensure(directory, "o", now=1.0).load("o")
    assert (tmp_path / "signing" / "o.legacy.json").exists()
    assert made.current.private_key.key_size == 2048
    assert SCHOB_KEYS.ensure(directory, "o", now=2.0).load("o").current.key_id == made.current.key_id


def test_no_change_is_lost_when_many_are_made_at_once(tmp_path: Path, keys: SchobKeys) -> None:
    file = SchobKeyFile(tmp_path / "o.legacy.json")
    file.save(keys)
    current = keys.current.key_id

    def show(name: str) -> None:
        file.change("o", lambda before: before.with_held({name: current}))

    threads = [threading.Thread(target=show, args=(f"n{number}",)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(file.load("o").held) == {f"n{number}" for number in range(12)}
