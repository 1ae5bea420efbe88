"""Kinds of private keys that every organization has beside its signing keys. A wing brings its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic

from shovey_trio.identity.key_files import K, KeyFile
from shovey_trio.identity.layout import DataDirectory


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyKind(Generic[K]):
    """What there is to know of a kind.

    Attributes:
        word: names it in files, in Vault, in the section ``secrets`` and in options of commands.
        variable: the environment variable that may hold the keys of the controller's own organization.
        about: what they are, for help texts.
        file: the class of its file.
        make: an organization's first keys, made at a time.
        ids: the names of the keys in a value.
    """

    word: str
    variable: str
    about: str
    file: type[KeyFile[K]]
    make: Callable[[str, float], K]
    ids: Callable[[K], Sequence[str]]

    def file_of(self, directory: DataDirectory, organization: str) -> KeyFile[K]:
        """An organization's file, there or not."""
        return self.file(directory.more_keys(organization, self.word))

    def ensure(self, directory: DataDirectory, organization: str, *, now: float) -> KeyFile[K]:
        """An organization's file, made where a data directory is older than the kind. Blocking.

        Raises:
            OSError: it cannot be written.
        """
        file = self.file_of(directory, organization)
        with file.locked():
            if not file.path.exists():
                file.save(self.make(organization, now))
        return file
