"""The first set-up of a controller: everything that ``shovey-trio init`` writes, all of it or nothing.

The files are made in a staging directory inside the data directory and moved to their places when all of them are
there, the configuration last: a data directory with a configuration is complete. (Staging beside the data directory
would need write access to its parent, and fails where it is a mount point.)
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shovey_trio.core.errors import Code, Exit, ShoveyError
from shovey_trio.core.jobs.model import Role, User
from shovey_trio.identity.authority import INTERNAL_NAME, CertificateAuthority, IssuedCertificate, create_authority
from shovey_trio.identity.files import (
    SECRET_DIRECTORY_MODE,
    make_secret_directory,
    sync_directory,
    write_public,
    write_secret,
)
from shovey_trio.identity.key_kinds import KeyKind
from shovey_trio.identity.layout import DataDirectory
from shovey_trio.identity.names import check_organization, user_identity
from shovey_trio.identity.organizations import make_organization_keys
from shovey_trio.identity.profile import ClientProfile, write_profile
from shovey_trio.identity.requests import make_private_key, make_request, private_key_pem
from shovey_trio.identity.tls import issue_listener_files

_STAGING: Final = ".init-"
# In the order of the moves; the configuration is the mark of completeness.
_ENTRIES: Final = ("ca", "tls", "signing", "admin", "store.sqlite3", "shovey-trio.toml")


class AlreadyInitialized(ShoveyError):
    """The data directory holds a set-up, or a part of one; nothing was touched. ``found`` lists what is there."""

    reason, code, http, exit = "ALREADY_INITIALIZED", Code.ALREADY_EXISTS, 409, Exit.CONFLICT


class NotSetUp(ShoveyError):
    """There is no set-up in the data directory; ``path`` names it."""

    reason, code, http, exit = "NOT_SET_UP", Code.FAILED_PRECONDITION, 500, Exit.USAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupOptions:
    """What a set-up depends on.

    Attributes:
        organization: name of the organization.
        admin: name of the first admin.
        hosts: names and addresses by which nodes and clients reach the listeners, beside the local ones.
        control_address, enroll_address: ``host:port`` that clients are told.
        configuration: text of ``shovey-trio.toml``.
        now: unix seconds.
        key_kinds: of the keys that an organization has beside its signing keys.
    """

    organization: str
    admin: str
    hosts: tuple[str, ...]
    control_address: str
    enroll_address: str
    configuration: str
    now: float
    key_kinds: Collection[KeyKind[Any]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstAdmin:
    """What the store has to know of the first admin."""

    user: User
    label: str
    certificate: IssuedCertificate


def initialize(root: Path, options: SetupOptions, populate_store: Callable[[Path, FirstAdmin], None]) -> DataDirectory:
    """Sets up a data directory. Blocking, some 10 ms and what the store takes.

    Args:
        root: the data directory; made (0700) when it is not there.
        options: see there.
        populate_store: makes the store at a path and puts the first admin into it; called once, everything durable
            when it returns. The path is moved afterwards, so nothing may stay open.

    Raises:
        AlreadyInitialized: there is a set-up already.
        InvalidRequest: a name is not a name.
        OSError: something cannot be written; what was written has been removed.
        ValueError: a host is neither an address nor a DNS name.
    """
    check_organization(options.organization)
    directory = DataDirectory(root)
    _refuse_existing(directory)
    existed = root.exists()
    make_secret_directory(root)
    staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=root))
    try:
        _build(DataDirectory(staging), options, populate_store)
        root.chmod(SECRET_DIRECTORY_MODE)
        # SQLite keeps files beside the store while it is open; whatever a closed one leaves belongs to it.
        beside_store = sorted(path.name for path in staging.glob("store.sqlite3-*"))
        for name in (*beside_store, *_ENTRIES):
            (staging / name).rename(root / name)
        sync_directory(root)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if not existed and not any(root.iterdir()):
            root.rmdir()
    return directory


def existing_entries(root: Path) -> tuple[str, ...]:
    """What of a set-up is in ``root``, by name."""
    return tuple(name for name in _ENTRIES if (root / name).exists())


def check_set_up(directory: DataDirectory) -> None:
    """Holds when something is set up in the data directory; blocking.

    Raises:
        NotSetUp: nothing is; the message says what to do.
        PermissionError: nobody may look, or not this account.
    """
    root = directory.root
    if not existing_entries(root):
        raise NotSetUp(f"{root} is not set up; run: shovey-trio init --data-dir {root}", path=str(root))


def _refuse_existing(directory: DataDirectory) -> None:
    found = existing_entries(directory.root)
    if not found:
        return
    what = f"{directory.root} is set up already" if len(found) == len(_ENTRIES) else f"{directory.root} is in use"
    raise AlreadyInitialized(
        f"{what}, nothing was changed; it holds: {', '.join(found)}", found=",".join(found), path=str(directory.root)
    )


def _build(directory: DataDirectory, options: SetupOptions, populate_store: Callable[[Path, FirstAdmin], None]) -> None:
    for entry in (directory.ca_key.parent, directory.control.key.parent, directory.signing_keys("x").parent):
        make_secret_directory(entry)
    ca_key = make_private_key()
    authority = create_authority(organization=options.organization, key=ca_key, now=options.now)
    write_secret(directory.ca_key, private_key_pem(ca_key))
    write_public(directory.ca_certificate, authority.pem)
    for pair in (directory.control, directory.enroll):
        issue_listener_files(authority, pair, hosts=options.hosts, now=options.now)
    make_organization_keys(directory, options.organization, now=options.now, kinds=options.key_kinds)
    populate_store(directory.store, _make_admin(directory, authority, options))
    write_public(directory.configuration, options.configuration.encode())


def _make_admin(directory: DataDirectory, authority: CertificateAuthority, options: SetupOptions) -> FirstAdmin:
    identity = user_identity(options.organization, options.admin)
    key = make_private_key()
    issued = authority.issue_client(csr=make_request(key), identity=identity, now=options.now)
    profile = ClientProfile(
        organization=options.organization,
        label=identity.label,
        server=options.control_address,
        enroll_server=options.enroll_address,
        server_name=INTERNAL_NAME,
        ca_certificates=authority.pem,
        certificate=issued.chain,
        private_key=private_key_pem(key),
    )
    write_profile(profile, directory.admin)
    user = User(name=identity.name, organization=identity.organization, role=Role.ADMIN, created_at=options.now)
    return FirstAdmin(user=user, label=identity.label, certificate=issued)
