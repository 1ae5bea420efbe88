from __future__ import annotations

import os
from pathlib import Path

import pytest

from shovey_trio.identity.files import (
    FileUnusable,
    InsecureFile,
    check_secret_directory,
    check_secret_file,
    make_secret_directory,
    read_secret,
    write_public,
    write_secret,
)


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def test_secrets_are_0600_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_secret(tmp_path / "a.key", b"secret")
        make_secret_directory(tmp_path / "d")
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "a.key") == 0o600
    assert mode_of(tmp_path / "d") == 0o700


def test_public_files_can_be_read_by_all_even_under_a_tight_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_public(tmp_path / "ca.crt", b"public")
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "ca.crt") == 0o644


def test_a_secret_is_read_back(tmp_path: Path) -> None:
    write_secret(tmp_path / "a.key", b"old")
    write_secret(tmp_path / "a.key", b"new")
    assert read_secret(tmp_path / "a.key") == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o644, 0o777])
def test_a_file_open_to_others_is_refused_by_name(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "a.key"
    write_secret(path, b"secret")
    path.chmod(mode)
    for check in (check_secret_file, read_secret):
        with pytest.raises(InsecureFile) as caught:
            check(path)
        assert caught.value.details == {"path": str(path), "mode": f"{mode:04o}"}
        assert f"chmod 0600 {path}" in caught.value.message


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o700])
def test_what_only_the_owner_can_do_is_the_owners_business(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "a.key"
    write_secret(path, b"secret")
    path.chmod(mode)
    check_secret_file(path)


def test_a_directory_open_to_others_is_refused(tmp_path: Path) -> None:
    make_secret_directory(tmp_path / "d")
    check_secret_directory(tmp_path / "d")
    (tmp_path / "d").chmod(0o750)
    with pytest.raises(InsecureFile, match="chmod 0700"):
        check_secret_directory(tmp_path / "d")


def test_missing_files_and_wrong_kinds_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileUnusable, match="missing"):
        read_secret(tmp_path / "missing")
    with pytest.raises(FileUnusable, match="not a regular file"):
        check_secret_file(tmp_path)
    with pytest.raises(FileUnusable, match="not a directory"):
        check_secret_directory(tmp_path / "file")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_secret_that_somebody_else_owns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    write_secret(path, b"secret")
    os.chown(path, 65_534, -1)
    with pytest.raises(InsecureFile, match="belongs to user 65534"):
        read_secret(path)


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    path.mkdir()  # a directory cannot be replaced by a file
    (path / "inside").write_bytes(b"kept")
    with pytest.raises(OSError, match="directory"):
        write_secret(path, b"secret")
    assert (path / "inside").read_bytes() == b"kept"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.key"]
