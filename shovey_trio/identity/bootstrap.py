"""The first set-up of a controller: everything that ``shovey-trio init`` writes, all of it or nothing.

The files are made in a staging directory inside the data directory and moved to their places when all of them are there,
the configuration last: a data directory with a configuration is complete. (Staging beside the data directory would need
write access to its parent, and fails where it is a mount point.)
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from shovey_trio.core.errors import Code, Exit, ShoveyError
from shovey_trio.core.model import Role, User
from shovey_trio.identity.authority import INTERNAL_NAME, IssuedCertificate, create_authority
from shovey_trio.identity.files import check_secret_directory, make_secret_directory, write_public, write_secret
from shovey_trio.identity.layout import DataDirectory
from shovey_trio.identity.names import check_organization, user_identity
from shovey_trio.identity.profile import ClientProfile, write_profile
from shovey_trio.identity.requests import make_private_key, make_request, private_key_pem
from shovey_trio.identity.signing_keys import SigningKeyFile, SigningKeys, make_signing_key
from shovey_trio.tls import issue_listener_files

_STAGING: Final = ".init-"
# In the order of the moves; the configuration is the mark of completeness.
_ENTRIES: Final = ("ca", "tls", "signing", "admin", "store.sqlite3", "shovey-trio.toml")


class AlreadyInitialized(ShoveyError):
    """The data directory holds a set-up, or a part of one; nothing was touched. ``found`` lists what is there."""

    reason, code, http, exit = "ALREADY_INITIALIZED", Code.ALREADY_EXISTS, 409, Exit.CONFLICT


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupOptions:
    """What a set-up depends on.

    Attributes:
        organization: name of the organization.
        admin: name of the first admin.
        hosts: names and addresses by which nodes and clients reach the listeners, beside the local ones.
        control_address: ``host:port`` that clients are told.
        configuration: text of ``shovey-trio.toml``.
        now: unix seconds.
    """

    organization: str
    admin: str
    hosts: tuple[str, ...]
    control_address: str
    configuration: str
    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstAdmin:
    """What the store has to know of the first admin."""

    user: User
    label: str
    certificate: IssuedCertificate
