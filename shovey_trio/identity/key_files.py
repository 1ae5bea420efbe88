"""A file that holds an organization's private keys: read whole, checked, and replaced at once under a lock."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Generic, Protocol, TypeVar

from shovey_trio.core.errors import ShoveyError
from shovey_trio.identity.files import FileLock, FileUnusable, make_secret_directory, read_secret, write_secret


class KeptKeys(Protocol):
    """What such a file holds: a value, compared by ``==``."""

    @property
    def organization(self) -> str:
        """Whose keys they are."""
        ...


K = TypeVar("K", bound=KeptKeys)


class KeyPlace(Protocol[K]):
    """Where an organization's keys are: a ``KeyFile``, or a document elsewhere; every method blocks."""

    def load(self, organization: str) -> K:
        """See ``KeyFile.load``."""
        ...

    def change(self, organization: str, change: Callable[[K], K]) -> K:
        """See ``KeyFile.change``."""
        ...


class KeyFile(ABC, Generic[K]):
    """The file; every method blocks.

    Attributes:
        holds: what is in it, for messages.
        path: where it is.
    """

    holds: ClassVar[str]

    def __init__(self, path: Path) -> None:
        self.path = path

    @staticmethod
    @abstractmethod
    def document(keys: K) -> bytes:
        """The file's contents: a secret."""

    @staticmethod
    @abstractmethod
    def parse(data: bytes) -> K:
        """Reads what ``document`` wrote.

        Raises:
            ValueError, KeyError, TypeError, AttributeError, ShoveyError: it is no such document; the message may
                quote it.
        """

    def load(self, organization: str) -> K:
        """Reads and checks the file.

        Raises:
            InsecureFile: somebody other than its owner can read it.
            FileUnusable: missing, damaged, not to be believed, or another organization's.
        """
        data = read_secret(self.path)
        try:
            keys = self.parse(data)
        except (ValueError, KeyError, TypeError, AttributeError, ShoveyError) as exc:
            # The cause is named by its type alone: its text could quote the file.
            raise FileUnusable(f"{self.path}: not a file of {self.holds} ({type(exc).__name__})") from None
        if keys.organization != organization:
            raise FileUnusable(f"{self.path}: holds the keys of {keys.organization!r}, not of {organization!r}")
        return keys

    def change(self, organization: str, change: Callable[[K], K]) -> K:
        """Replaces what is in it by ``change`` of that, with nobody else's change lost; returns what is in it now.

        Raises:
            As ``load`` and ``change``; OSError: it cannot be written, and the old file is untouched.
        """
        with self.locked():
            before = self.load(organization)
            after = change(before)
            if after != before:
                self.save(after)
            return after

    def save(self, keys: K) -> None:
        """Replaces the file at once and durably.

        Raises:
            OSError: it cannot be written; the old file is untouched.
        """
        make_secret_directory(self.path.parent)
        write_secret(self.path, self.document(keys))

    def locked(self) -> FileLock:
        """Keeps other processes from changing the file, or what lies beside it for the same organization."""
        return FileLock(self.path.with_name(self.path.name + ".lock"))
