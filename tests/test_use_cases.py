"""Commands on the controller's host change a store by way of the use cases that a running controller has, too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import shovey_trio
from shovey_trio.store.contract import Store

_ROOT = Path(shovey_trio.__file__).parent
_COMMANDS = ("cli", "shovey/cli")
# What begins with these only looks; everything else that a store has changes it.
_READS = ("load_", "list_", "get_", "find_", "count_", "read_", "snapshot_", "unfinished_", "revoked_", "on_commit")
_ALSO_READ = {"job_overview", "audit_head", "audit_start", "failure"}


def writing_methods() -> set[str]:
    names = {name for name in dir(Store) if not name.startswith("_")}
    return {name for name in names if not name.startswith(_READS)} - _ALSO_READ


def writes(source: str) -> Iterator[str]:
    """``LINE: NAME`` for each use of a store's writing method, whatever the store is called there."""
    for found in ast.walk(ast.parse(source)):
        if isinstance(found, ast.Attribute) and found.attr in writing_methods():
            yield f"{found.lineno}: {found.attr}"


def test_no_command_writes_into_a_store_by_itself() -> None:
    found = [
        f"{path.relative_to(_ROOT)}:{line}"
        for folder in _COMMANDS
        for path in sorted((_ROOT / folder).rglob("*.py"))
        for line in writes(path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_what_writes_is_found() -> None:
    assert {"write_user", "remove_grant", "append_audit", "revoke_certificates", "prune_audit"} <= writing_methods()
    assert not writing_methods() & {"load_users", "read_audit"}
    assert list(writes("async def f(s):\n    await s.write_user(1)\n")) == ["2: write_user"]
