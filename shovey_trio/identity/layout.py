"""Where things are in the controller's data directory and in a client's directory: every file name, in one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_SECRET: Final = frozenset({".key", ".json"})


@dataclass(frozen=True, slots=True)
class DataDirectory:
    """Paths below the controller's data directory (0700). Everything that ends in ``.key`` or ``.json`` is 0600."""

    root: Path

    @property
    def configuration(self) -> Path:
        return self.root / "shovey-trio.toml"

    @property
    def store(self) -> Path:
        return self.root / "store.sqlite3"

    @property
    def ca_certificate(self) -> Path:
        """PEM; the first certificate issues, all are trusted."""
        return self.root / "ca" / "ca.crt"

    @property
    def ca_key(self) -> Path:
        return self.root / "ca" / "ca.key"

    @property
    def control(self) -> KeyPair:
        """Of the listener with mutual TLS."""
        return KeyPair(self.root / "tls" / "control")

    @property
    def enroll(self) -> KeyPair:
        """Of the listener that serves Enroll and Renew."""
        return KeyPair(self.root / "tls" / "enroll")

    def signing_keys(self, organization: str) -> Path:
        return self.root / "signing" / f"{organization}.json"

    def more_keys(self, organization: str, kind: str) -> Path:
        """Keys of another kind than signing keys; see ``key_kinds``."""
        return self.root / "signing" / f"{organization}.{kind}.json"

    def root_key(self, organization: str) -> Path:
        """What key sets are signed with; absent where it is kept elsewhere."""
        return self.root / "signing" / f"{organization}.root.key"

    def proposed_keys(self, organization: str) -> Path:
        """A key set that waits for the root's signature, with the private keys it brings."""
        return self.root / "signing" / f"{organization}.proposed.json"

    @property
    def changed(self) -> Path:
        """Touched by commands that changed the store in a way that a running controller must know of at once."""
        return self.root / "changed"

    @property
    def audit_key(self) -> Path:
        """What heads of the audit log are signed with."""
        return self.root / "audit" / "audit.key"

    @property
    def audit_head(self) -> Path:
        """The newest signed head of the audit log."""
        return self.root / "audit" / "head.json"

    @property
    def audit_rights(self) -> Path:
        """Who may do what, signed as the head is: for a store that is restored from an older copy."""
        return self.root / "audit" / "rights.json"

    def private_paths(self) -> Sequence[Path]:
        """What nobody but the owner may read or write: the directories, keys, and the store. Reads the directory."""
        folders = [path for path in sorted(self.root.glob("*")) if path.is_dir()]
        secrets = [file for folder in folders for file in sorted(folder.glob("*")) if file.suffix in _SECRET]
        # SQLite's files beside the store hold what the store will.
        return (self.root, *folders, *secrets, *sorted(self.root.glob("store.sqlite3*")))

    def lasting_files(self) -> Sequence[Path]:
        """What a controller needs beside its store to be set up again elsewhere. Reads the directory."""
        folders = ("ca", "tls", "signing", "audit", self.admin.name)
        found = [self.configuration, *(file for name in folders for file in sorted((self.root / name).rglob("*")))]
        return [file for file in found if file.is_file() and file.suffix != ".lock"]

    @property
    def admin(self) -> Path:
        """The first admin's client directory."""
        return self.root / "admin"


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A private key and its certificate chain, side by side: ``stem.key`` and ``stem.crt``."""

    stem: Path

    @property
    def key(self) -> Path:
        return self.stem.with_name(self.stem.name + ".key")

    @property
    def certificate(self) -> Path:
        return self.stem.with_name(self.stem.name + ".crt")


@dataclass(frozen=True, slots=True)
class ClientDirectory:
    """Paths of one user's client directory (0700)."""

    root: Path

    @property
    def configuration(self) -> Path:
        return self.root / "config.toml"

    @property
    def identity(self) -> KeyPair:
        return KeyPair(self.root / "client")

    @property
    def ca_certificate(self) -> Path:
        return self.root / "ca.crt"
