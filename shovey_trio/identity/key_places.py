"""Where private keys may be, as settings: light enough for every command to import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from shovey_trio.core.errors import InvalidRequest
from shovey_trio.identity.files import read_secret

#: Environment variable with a document of signing keys for the controller's own organization: JSON, or base64 of it.
SIGNING_VARIABLE: Final = "SHOVEY_TRIO_SIGNING_KEYS"


class KeySource(StrEnum):
    """Where keys are."""

    FILES = "files"
    ENVIRONMENT = "environment"
    VAULT = "vault"


@dataclass(frozen=True, slots=True, kw_only=True)
class VaultOptions:
    """Where Vault is.

    Attributes:
        address: ``https://host:port``.
        ca_file: PEM; empty for the system's.
        mount: of the KV version 2 engine.
        approle_mount: of the AppRole method.
        timeout: seconds for one question.
    """

    address: str
    ca_file: str = ""
    namespace: str = ""
    mount: str = "secret"
    approle_mount: str = "approle"
    timeout: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class VaultCredentials:
    """Files with what Vault knows us by: a token, or a role and its secret id."""

    token_file: Path | None = None
    role_id: str = ""
    secret_id_file: Path | None = None

    def credentials(self) -> Mapping[str, str]:
        """``token``, or ``role_id`` and ``secret_id``: read anew at every login, so that a file may be replaced.

        Raises:
            InsecureFile, FileUnusable, InvalidRequest: they cannot be read.
        """
        if self.token_file is not None:
            return {"token": _line(self.token_file)}
        assert self.secret_id_file is not None  # the configuration has one of them
        return {"role_id": self.role_id, "secret_id": _line(self.secret_id_file)}


def _line(path: Path) -> str:
    text = read_secret(path).decode("utf-8", "replace").strip()
    if not text or not text.isascii() or not text.isprintable():
        raise InvalidRequest(f"{path}: expected one line of text", field="vault")
    return text
