"""Whose orders the launcher takes: this node's names and its organization's root key, as root wrote them at enrolment.

They lie in the launcher's own directory, where the network part can read and write nothing, and nothing that it says
changes them. What it may bring is a key set: one that the root key signed, not older than the one at hand
(``trusted_keys``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shovey_agent.desk.trusted_keys import SIGNING_KEYS_FILE, TrustedKeys
from shovey_trio.core.errors import Code, Exit, ShoveyError
from shovey_trio.core.trust.key_sets import KeySet
from shovey_trio.core.trust.key_trust import PublishedKeys
from shovey_trio.core.trust.orders import NodeIdentity
from shovey_trio.identity.files import FileUnusable, make_secret_directory, read_secret, write_secret

_FORMAT: Final = 1
_IDENTITY_FILE: Final = "identity.json"


class LauncherNotSetUp(ShoveyError):
    """The launcher's directory does not say whose orders to take; ``shovey-agent enroll --split`` writes it."""

    reason, code, http, exit = "LAUNCHER_NOT_SET_UP", Code.FAILED_PRECONDITION, 500, Exit.USAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class LauncherTrust:
    """What stands in a launcher's directory.

    Attributes:
        identity: whose orders are taken.
        keys: which keys may sign them; they hang on a root key, always.
    """

    identity: NodeIdentity
    keys: TrustedKeys

    def learn(self, signed_key_set: bytes) -> bool:
        """Keeps a key set that somebody brought, if the root key signed it and it is newer. Blocks.

        Raises:
            KeySetRefused: it is not believed; what was believed stays in force.
            OSError: it is in force and could not be written.
        """
        nothing_in_plain = KeySet(organization=self.identity.organization, serial=0, keys=())
        return self.keys.learn(PublishedKeys(keys=nothing_in_plain, signed=signed_key_set))


def load_trust(directory: Path) -> LauncherTrust:
    """What stands in the launcher's directory. Blocks.

    Raises:
        LauncherNotSetUp: nothing, or no root key.
        InsecureFile: somebody else could have written it.
        FileUnusable: it is damaged.
    """
    file = directory / _IDENTITY_FILE
    if not file.exists():
        raise LauncherNotSetUp(f"{directory} does not say whose orders to take: enrol this node with --split, as root")
    data = read_secret(file)
    try:
        identity = _parse(json.loads(data))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise FileUnusable(f"{file}: damaged ({type(exc).__name__}); enrol this node again", path=str(file)) from None
    keys = TrustedKeys.load(directory / SIGNING_KEYS_FILE, identity.organization)
    _demand_root(keys)
    return LauncherTrust(identity=identity, keys=keys)


def save_trust(directory: Path, identity: NodeIdentity, offered: PublishedKeys, *, root_public_key: bytes) -> None:
    """Makes the launcher of ``directory`` take orders for this node from now on, whatever was there before. Blocks.

    Args:
        directory: made if need be, for its owner alone.
        identity: as enrolled.
        offered: what the controller said of its keys at enrolment.
        root_public_key: what the join string said of the root; empty takes the one that came with the keys.

    Raises:
        LauncherNotSetUp: there is no root key.
        KeySetRefused: the root key has not signed this set for this organization.
        OSError: it cannot be written.
    """
    make_secret_directory(directory)
    keys = TrustedKeys.unset(directory / SIGNING_KEYS_FILE, identity.organization, root_public_key=root_public_key)
    if not root_public_key and not offered.root_public_key:
        _demand_root(keys)
    keys.learn(offered)
    document = {
        "format": _FORMAT,
        "organization": identity.organization,
        "node": identity.node,
        "agent_instance": identity.agent_instance,
    }
    write_secret(directory / _IDENTITY_FILE, json.dumps(document, indent=1).encode("ascii") + b"\n")


def _demand_root(keys: TrustedKeys) -> None:
    if not keys.root_public_key:
        # Without one, whoever brings the keys would say which hold, and that is the part that is not trusted.
        raise LauncherNotSetUp(
            "the controller has no organization root key: a launcher of its own needs one (shovey-trio key)"
        )


def _parse(document: dict[str, Any]) -> NodeIdentity:
    if document["format"] != _FORMAT:
        raise ValueError("unknown format")
    return NodeIdentity(
        organization=str(document["organization"]),
        node=str(document["node"]),
        agent_instance=str(document["agent_instance"]),
    )
