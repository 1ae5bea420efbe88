"""A backup: one file with a consistent copy of the store, and the keys, certificates and settings beside it.

It is a zip archive. Its directory stands at its end and everything in it has a checksum, so one that was cut off or
damaged is known before anything is done with it. Whoever has it has the controller's keys: it is 0600, as they are.
"""

from __future__ import annotations

import errno
import json
import struct
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Final

from shovey_trio import __version__
from shovey_trio.config.server import ServerSettings
from shovey_trio.core.errors import Code, Exit, ShoveyError
from shovey_trio.identity.files import sync_directory, sync_file
from shovey_trio.identity.layout import DataDirectory
from shovey_trio.store.sqlite.copies import check_copy, copy_store

_FORMAT: Final = 1
_MANIFEST: Final = "shovey-trio-backup.json"
_STORE: Final = "store.sqlite3"
_FILES: Final = "data/"
# What ``zipfile`` and the manifest raise at garbage: encrypted or unknown entries, numbers and names that are none.
_GARBAGE: Final = (LookupError, ValueError, TypeError, EOFError, RuntimeError, OverflowError, struct.error, zlib.error)
# Half of the size for a third of the time of the default.
_LEVEL: Final = 1


class BackupExists(ShoveyError):
    """There is a file where the backup is to be; nothing was changed. ``path`` names it."""

    reason, code, http, exit = "BACKUP_EXISTS", Code.ALREADY_EXISTS, 409, Exit.CONFLICT


class BackupUnusable(ShoveyError):
    """The file is no backup of a controller, or damaged; nothing was changed. ``path`` names it."""

    reason, code, http, exit = "BACKUP_UNUSABLE", Code.DATA_LOSS, 500, Exit.USAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """A backup that is whole.

    Attributes:
        organization: the controller's own.
        made_at: unix seconds.
        version: of the program that made it.
        files: those beside the store, relative to the data directory.
    """

    organization: str
    made_at: float
    version: str
    files: tuple[str, ...]

    @property
    def words(self) -> str:
        at = datetime.fromtimestamp(self.made_at, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return f"organization {self.organization}, made on {at} by version {self.version}"


def write_backup(settings: ServerSettings, target: Path) -> Backup:
    """Makes a backup while the controller serves, or not. Blocking; it is there whole and durable, or not at all.

    Raises:
        BackupExists: there is something at ``target``.
        StoreUnavailable, StoreCorrupt: the store cannot be copied, or what was copied is damaged.
        OSError: it cannot be written; what was written of it is removed.
    """
    if target.exists():
        raise BackupExists(f"{target} exists and was left as it is; choose another name", path=str(target))
    made = Backup(
        organization=settings.server.organization,
        made_at=time.time(),
        version=__version__,
        files=tuple(_relative(settings.directory, path) for path in settings.directory.lasting_files()),
    )
    # Beside its place, so that a full disk is found here and the last step is a rename.
    with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        whole = Path(scratch) / "backup"
        whole.touch(mode=0o600)
        with zipfile.ZipFile(
            whole, "w", zipfile.ZIP_DEFLATED, compresslevel=_LEVEL, strict_timestamps=False
        ) as archive:
            # Before the store: what is signed beside it is then not newer than the copy.
            for name in made.files:
                archive.write(settings.directory.root / name, f"{_FILES}{name}")
            copy = Path(scratch) / _STORE
            copy_store(settings.store_path, copy)
            check_copy(copy)
            archive.write(copy, _STORE)
            archive.writestr(_MANIFEST, json.dumps({"format": _FORMAT, **_said(made)}))
        sync_file(whole)
        whole.rename(target)
    sync_directory(target.parent)
    return made


@contextmanager
def open_backup(source: Path) -> Iterator[tuple[Backup, zipfile.ZipFile]]:
    """A backup that is whole, and its archive, for the block; all of it is read to find that out. Blocking.

    Raises:
        BackupUnusable: it is none, is damaged, or was made by a newer version.
        OSError: it cannot be read.
    """
    try:
        archive = zipfile.ZipFile(source)
    except (zipfile.BadZipFile, *_GARBAGE):
        raise _unusable(source, "is no backup, or was cut off") from None
    with archive:
        yield _checked(source, archive), archive


def extract_store(archive: zipfile.ZipFile, target: Path) -> None:
    """Writes the copy of the store (0600), durably. Blocking."""
    _extract(archive, _STORE, target)


def put_files(archive: zipfile.ZipFile, backup: Backup, directory: DataDirectory) -> tuple[str, ...]:
    """Puts the files beside the store into a data directory that has no CA yet, and returns their names. Blocking.

    What is there stays. The key of the CA comes last: where it is, this was done whole. A root key that was moved away
    from there is not brought back.
    """
    if directory.ca_key.exists():
        return ()
    missing = [name for name in backup.files if not (directory.root / name).exists()]
    for name in sorted(missing, key=lambda name: directory.root / name == directory.ca_key):
        target = directory.root / name
        for folder in reversed(target.relative_to(directory.root).parents[:-1]):
            (directory.root / folder).mkdir(mode=0o700, exist_ok=True)
        fresh = target.with_name(f".{target.name}.new")
        _extract(archive, f"{_FILES}{name}", fresh)
        fresh.replace(target)
        sync_directory(target.parent)
    return tuple(missing)


def _checked(source: Path, archive: zipfile.ZipFile) -> Backup:
    try:
        damaged = archive.testzip()
        if damaged is not None:
            raise _unusable(source, f"is damaged at {damaged}")
        said = json.loads(archive.read(_MANIFEST))
        if said["format"] != _FORMAT:
            raise _unusable(source, f"has format {said['format']}; this program knows {_FORMAT}")
        made = Backup(
            organization=str(said["organization"]),
            made_at=float(said["made_at"]),
            version=str(said["version"]),
            files=tuple(map(str, said["files"])),
        )
        if {*map(f"{_FILES}{{}}".format, made.files), _STORE, _MANIFEST} != set(archive.namelist()):
            raise _unusable(source, "does not hold what it says")
    except (zipfile.BadZipFile, *_GARBAGE):
        raise _unusable(source, "is no backup of a controller") from None
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise _unusable(source, "names a place before its beginning") from None
    if any(PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts for name in made.files):
        raise _unusable(source, "names a file outside of the data directory")
    return made


def _extract(archive: zipfile.ZipFile, name: str, target: Path) -> None:
    target.touch(mode=0o600)
    with archive.open(name) as packed, target.open("wb") as file:
        while piece := packed.read(1024 * 1024):
            file.write(piece)
    sync_file(target)


def _said(backup: Backup) -> dict[str, object]:
    return {
        "organization": backup.organization,
        "made_at": backup.made_at,
        "version": backup.version,
        "files": backup.files,
    }


def _relative(directory: DataDirectory, path: Path) -> str:
    return path.relative_to(directory.root).as_posix()


def _unusable(source: Path, what: str) -> BackupUnusable:
    return BackupUnusable(f"{source} {what}; nothing was changed", path=str(source))
