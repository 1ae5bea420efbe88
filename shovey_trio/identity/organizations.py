"""The organizations of a data directory: each is its keys.

An organization is there when its signing keys are. Users, nodes and jobs of an organization without keys can do
nothing; they are history.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shovey_trio.identity.files import sync_directory, write_secret
from shovey_trio.identity.key_kinds import KeyKind
from shovey_trio.identity.layout import DataDirectory
from shovey_trio.identity.root_keys import make_keys, root_key_pem
from shovey_trio.identity.signing_keys import SigningKeyFile

_KEYS = ".json"


def organizations(directory: DataDirectory) -> Sequence[str]:
    """Their names, sorted."""
    folder = directory.signing_keys("x").parent
    # A name has no dot (``names.check_organization``), so what has two is another file of an organization.
    names = (path.name.removesuffix(_KEYS) for path in folder.glob(f"*{_KEYS}"))
    return sorted(name for name in names if name and "." not in name)


def make_organization_keys(
    directory: DataDirectory, organization: str, *, now: float, kinds: Iterable[KeyKind[Any]] = ()
) -> None:
    """Makes an organization's root key, its signing key and those of further kinds; durable when it returns.

    Args:
        directory: of the controller.
        organization: one that is not there; files of an earlier attempt are written over.
        now: unix seconds.
        kinds: of the further keys.

    Raises:
        OSError: something cannot be written; the organization is not there then.
    """
    for kind in kinds:
        kind.ensure(directory, organization, now=now)
    root = Ed25519PrivateKey.generate()
    write_secret(directory.root_key(organization), root_key_pem(root))
    # Last, because an organization is there when this file is.
    SigningKeyFile(directory.signing_keys(organization)).save(make_keys(organization, root, now=now))


def remove_organization_keys(directory: DataDirectory, organization: str) -> None:
    """Removes every key file of an organization, the one it is known by last; durable when it returns.

    Raises:
        OSError: one cannot be removed; repeating it goes on.
    """
    keys = directory.signing_keys(organization)
    for path in sorted(keys.parent.glob(f"{organization}.*"), key=lambda path: path == keys):
        path.unlink()
    sync_directory(keys.parent)
