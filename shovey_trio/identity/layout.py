"""Where things are in the controller's data directory and in a client's directory: every file name, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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

    def legacy_keys(self, organization: str) -> Path:
        """The RSA keys for old nodes."""
        return self.root / "signing" / f"{organization}.legacy.json"

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
