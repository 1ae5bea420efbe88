"""Files with secrets: written so that nobody else can read them at any moment, refused when somebody else could."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from shovey_trio.core.errors import Code, Exit, ShoveyError

SECRET_FILE_MODE: Final = 0o600
SECRET_DIRECTORY_MODE: Final = 0o700
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
#: The largest secret is a file of signing keys: some hundred bytes each.
_MAX_SECRET_BYTES: Final = 1024 * 1024


class InsecureFile(ShoveyError):
    """Somebody other than its owner could read or replace a secret; ``path`` names the file and ``mode`` its mode."""

    reason, code, http, exit = "INSECURE_FILE", Code.FAILED_PRECONDITION, 500, Exit.USAGE


class FileUnusable(ShoveyError):
    """A file of the installation is missing, unreadable or damaged; ``path`` names it."""

    reason, code, http, exit = "FILE_UNUSABLE", Code.FAILED_PRECONDITION, 500, Exit.USAGE


@contextmanager
def contents_of(path: Path) -> Iterator[None]:
    """Has what is wrong with what was read from ``path`` say so: reading it knows no names."""
    try:
        yield
    except ShoveyError as error:
        raise type(error)(f"{path}: {error.message}", **{**error.details, "path": str(path)}) from error


class FileLock:
    """Keeps other processes that take it out, from ``with`` to its end; blocking. Its file stays where it is.

    Of a file beside what it protects, because that is replaced and not rewritten.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def __enter__(self) -> None:
        make_secret_directory(self._path.parent)
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, SECRET_FILE_MODE)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def check_secret_file(path: Path) -> None:
    """Holds when ``path`` is a regular file of ours (or of root) that its owner alone can read.

    Raises:
        InsecureFile: mode or owner are too wide; the message says what to do.
        FileUnusable: it cannot be looked at.
    """
    try:
        _check(path, path.stat(), directory=False)
    except OSError as exc:
        raise _unusable(path, exc) from exc


def check_secret_directory(path: Path) -> None:
    """As ``check_secret_file``, for a directory."""
    try:
        _check(path, path.stat(), directory=True)
    except OSError as exc:
        raise _unusable(path, exc) from exc


def check_private(paths: Iterable[Path]) -> None:
    """As ``check_secret_file`` and ``check_secret_directory``, for whatever of ``paths`` is there."""
    for path in paths:
        if path.is_dir():
            check_secret_directory(path)
        elif path.exists():
            check_secret_file(path)


def read_secret(path: Path) -> bytes:
    """The contents of a secret file, checked on the opened file, so that it cannot be exchanged in between.

    Raises:
        InsecureFile, FileUnusable: as ``check_secret_file``.
    """
    try:
        with path.open("rb") as file:
            _check(path, os.fstat(file.fileno()), directory=False)
            return file.read(_MAX_SECRET_BYTES)
    except OSError as exc:
        raise _unusable(path, exc) from exc


def read_public(path: Path) -> bytes:
    """The contents of a file without secrets.

    Raises:
        FileUnusable: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as exc:
        raise _unusable(path, exc) from exc


def write_secret(path: Path, data: bytes) -> None:
    """Puts ``data`` in the place of ``path`` at once and durably; the file is 0600 from its first byte on.

    Raises:
        OSError: it cannot be written; what was there before is untouched.
    """
    _replace(path, data, SECRET_FILE_MODE)


def write_public(path: Path, data: bytes) -> None:
    """As ``write_secret``, readable for everybody who may enter the directory."""
    _replace(path, data, 0o644)


def make_secret_directory(path: Path) -> None:
    """Makes ``path`` (0700) and, with the usual modes, its parents; one that exists keeps its mode.

    Raises:
        OSError: it cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=SECRET_DIRECTORY_MODE, exist_ok=True)


def sync_file(path: Path) -> None:
    """Makes what was written to a file durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Makes the names in a directory durable: a renamed file is not, until its directory is synced."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(path: Path, data: bytes, mode: int) -> None:
    # mkstemp makes the file 0600 and exclusively: there is no moment at which it is wider or somebody else's.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise
    sync_directory(path.parent)


def _check(path: Path, found: os.stat_result, *, directory: bool) -> None:
    wanted = SECRET_DIRECTORY_MODE if directory else SECRET_FILE_MODE
    if not (stat.S_ISDIR if directory else stat.S_ISREG)(found.st_mode):
        raise FileUnusable(f"{path} is not a {'directory' if directory else 'regular file'}", path=str(path))
    mode = stat.S_IMODE(found.st_mode)
    if mode & _OTHERS:
        raise InsecureFile(
            f"{path} has mode {mode:04o} and holds secrets: chmod {wanted:04o} {path}",
            path=str(path),
            mode=f"{mode:04o}",
        )
    if found.st_uid not in (0, os.geteuid()):
        raise InsecureFile(
            f"{path} holds secrets and belongs to user {found.st_uid}: chown it to user {os.geteuid()}",
            path=str(path),
            mode=f"{mode:04o}",
        )


def _unusable(path: Path, exc: OSError) -> FileUnusable:
    return FileUnusable(f"{path}: {exc.strerror or exc}", path=str(path))
