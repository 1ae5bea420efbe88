"""Where an organization's private keys come from: files in the data directory, the environment, or Vault.

Whatever the source, it holds the same document as the file does. Files are what every command changes; a document in
the environment or in Vault is made from one (``shovey-trio vault put``), and the file may then be taken off the host.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Generic, Protocol

from shovey_trio.core.errors import ConfigurationInvalid, ShoveyError
from shovey_trio.identity.files import FileUnusable
from shovey_trio.identity.key_files import K, KeyFile
from shovey_trio.identity.key_places import VaultCredentials, VaultOptions
from shovey_trio.identity.vault import Vault, VaultRefused

#: The field of a secret in Vault.
FIELD: Final = "document"
_BAD_DOCUMENT: Final = (ValueError, KeyError, TypeError, AttributeError, ShoveyError)


class Document(Protocol):
    """A document of keys in one place; methods block."""

    def read(self) -> bytes:
        """Raises ``ShoveyError`` where there is none to be had."""
        ...

    def replace(self, change: Callable[[bytes], bytes]) -> bytes:
        """Puts ``change`` of it in its place, with nobody else's change lost; returns what is there now."""
        ...


@dataclass(frozen=True, slots=True)
class EnvironmentDocument:
    """Given by whoever starts the daemon; changes last as long as it does."""

    variable: str

    def read(self) -> bytes:
        """See ``Document``.

        Raises:
            ConfigurationInvalid: it is not set, or neither JSON nor base64.
        """
        return _from_environment(self.variable)

    def replace(self, change: Callable[[bytes], bytes]) -> bytes:
        """See ``Document``: it is not kept."""
        return change(self.read())


@dataclass(frozen=True, slots=True)
class VaultDocument:
    """A secret of KV version 2 whose field ``document`` holds it."""

    vault: Vault
    path: str

    def read(self) -> bytes:
        """See ``Document``."""
        return self._read()[0]

    def replace(self, change: Callable[[bytes], bytes]) -> bytes:
        """See ``Document``.

        Raises:
            VaultRefused: somebody else wrote in between, or we may not write.
        """
        before, version = self._read()
        after = change(before)
        if after != before:
            self.vault.write(self.path, {FIELD: after.decode("utf-8")}, after_version=version)
        return after

    def put(self, document: bytes) -> int:
        """Writes a document, whatever is there; returns its version."""
        try:
            version = self.vault.read(self.path).version
        except VaultRefused:
            version = 0
        return self.vault.write(self.path, {FIELD: document.decode("utf-8")}, after_version=version)

    def _read(self) -> tuple[bytes, int]:
        secret = self.vault.read(self.path)
        document = secret.data.get(FIELD)
        if not isinstance(document, str):
            raise VaultRefused(f"the secret {self.path} has no field {FIELD!r} with text")
        return document.encode("utf-8"), secret.version


class KeyDocument(Generic[K]):
    """Keys that are not in a file; every method blocks.

    Args:
        kind: the class of the file that would hold them.
        document: what holds them.
        name: of the document, for messages.
    """

    def __init__(self, kind: type[KeyFile[K]], document: Document, name: str) -> None:
        self._kind = kind
        self._document = document
        self._name = name

    def load(self, organization: str) -> K:
        """See ``KeyFile.load``.

        Raises:
            FileUnusable: it holds no such keys, or another organization's.
            And whatever its place raises.
        """
        return self._parse(self._document.read(), organization)

    def change(self, organization: str, change: Callable[[K], K]) -> K:
        """See ``KeyFile.change``."""

        def changed(before: bytes) -> bytes:
            keys = self._parse(before, organization)
            after = change(keys)
            return before if after == keys else self._kind.document(after)

        return self._parse(self._document.replace(changed), organization)

    def _parse(self, data: bytes, organization: str) -> K:
        try:
            keys = self._kind.parse(data)
        except _BAD_DOCUMENT as error:
            raise FileUnusable(f"{self._name}: no document of {self._kind.holds} ({type(error).__name__})") from None
        if keys.organization != organization:
            raise FileUnusable(f"{self._name}: holds the keys of another organization than {organization!r}")
        return keys


@lru_cache(maxsize=8)
def vault_at(options: VaultOptions, credentials: VaultCredentials) -> Vault:
    """The one client of this process for these settings, with its token and its connections."""
    return Vault(options, credentials)


@lru_cache(maxsize=8)
def _from_environment(variable: str) -> bytes:
    # Taken out: commands and whatever else this process starts must not inherit it.
    text = os.environ.pop(variable, "").strip()
    if not text:
        raise ConfigurationInvalid(f"{variable} is not set")
    if text.startswith("{"):
        return text.encode("utf-8")
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise ConfigurationInvalid(f"{variable} is neither JSON nor base64") from None
