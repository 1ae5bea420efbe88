"""The agent's whitelist file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shovey_agent.desk.whitelist_file import WhitelistFile
from shovey_trio.core.whitelist.whitelist import DEFAULT_WHITELIST, NotWhitelisted, WhitelistInvalid


def test_whitelist_is_read_again_when_it_is_edited_or_replaced(tmp_path: Path) -> None:
    path = tmp_path / "whitelist.json"
    path.write_text('{"a": "true"}')
    whitelist = WhitelistFile(path)
    path.write_text('{"b": "true", "c": "true"}')
    assert set(whitelist.current().entries) == {"b", "c"}
    replacement = tmp_path / "new"
    replacement.write_text('{"d": "true"}')
    replacement.rename(path)
    assert set(whitelist.current().entries) == {"d"}
    with pytest.raises(NotWhitelisted):
        whitelist.current().resolve("a")


def test_unchanged_whitelist_is_not_read_again(tmp_path: Path) -> None:
    path = tmp_path / "whitelist.json"
    path.write_text('{"a": "true"}')
    whitelist = WhitelistFile(path)
    assert whitelist.current() is whitelist.current()


@pytest.mark.parametrize("broken", ['{"a": ', '{"a": 7}', None])
def test_broken_or_missing_new_file_keeps_the_old_one_and_says_so(tmp_path: Path, broken: str | None) -> None:
    path = tmp_path / "whitelist.json"
    path.write_text('{"a": "true"}')
    whitelist = WhitelistFile(path)
    if broken is None:
        path.unlink()
    else:
        path.write_text(broken)
    assert set(whitelist.current().entries) == {"a"}
    assert whitelist.problems
    path.write_text('{"repaired": "true"}')
    assert set(whitelist.current().entries) == {"repaired"}
    assert whitelist.problems == ()


@pytest.mark.parametrize("kind", ["missing", "broken", "fifo", "directory"])
def test_first_whitelist_must_be_readable(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "whitelist.json"
    match kind:
        case "broken":
            path.write_text("{")
        case "fifo":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
    with pytest.raises(WhitelistInvalid):
        WhitelistFile(path)


def test_no_file_in_the_default_place_permits_chef_client_alone_until_there_is_one(tmp_path: Path) -> None:
    path = tmp_path / "whitelist.json"
    whitelist = WhitelistFile(path, when_missing=DEFAULT_WHITELIST)
    assert set(whitelist.current().entries) == {"chef-client"}
    path.write_text('{"uptime": "uptime"}')
    assert set(whitelist.current().entries) == {"uptime"}
    path.unlink()
    assert set(whitelist.current().entries) == {"uptime"}, "a file that is gone keeps the one in force"
