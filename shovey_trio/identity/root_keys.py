"""An organization's root key and what is done with it: signing key sets, here or on another machine.

On the controller (the default of ``init``) the root key lies beside the signing keys, and a change of keys is one step.
Kept elsewhere, a change is three: the controller writes a proposal, the root signs it there, the controller imports it.
The private keys of a proposal wait in a file of their own (0600) and are worth nothing before the set is signed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from shovey_trio.core.errors import Code, Exit, ShoveyError
from shovey_trio.core.trust.key_rotation import DEFAULT_OVERLAP, first_set, revoked, rotated
from shovey_trio.core.trust.key_sets import KeySet, KeyState, encode_key_set, sign_key_set, verify_key_set
from shovey_trio.core.trust.order_signing import SigningKey
from shovey_trio.identity.files import FileUnusable, read_secret, write_secret
from shovey_trio.identity.layout import DataDirectory
from shovey_trio.identity.requests import KeyUnreadable
from shovey_trio.identity.signing_keys import (
    SigningKeyFile,
    SigningKeys,
    make_signing_key,
    parse_private_keys,
    private_keys_document,
)


class RootKeyElsewhere(ShoveyError):
    """The organization's root key is not on this machine: the change needs a proposal, a signature and an import."""

    reason, code, http, exit = "ROOT_KEY_ELSEWHERE", Code.FAILED_PRECONDITION, 409, Exit.CONFLICT


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyChange:
    """A key set that is to come into force, with the private halves of the keys it brings."""

    keys: KeySet
    private_keys: Mapping[str, Ed25519PrivateKey] = field(repr=False)


Change = Callable[[SigningKeys], KeyChange]
"""What is to become of an organization's keys."""


def root_key_pem(root: Ed25519PrivateKey) -> bytes:
    """The root key as unencrypted PKCS#8 PEM; its file is the protection."""
    return root.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def load_root_key(path: Path) -> Ed25519PrivateKey:
    """Reads a file that holds what ``root_key_pem`` wrote.

    Raises:
        InsecureFile, FileUnusable: it cannot be read, or others could.
        KeyUnreadable: garbage, encrypted, or of another kind.
    """
    try:
        key = load_pem_private_key(read_secret(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise KeyUnreadable(f"{path}: the root key is not unencrypted PEM", path=str(path)) from exc
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyUnreadable(f"{path}: the root key is not an Ed25519 key", path=str(path))
    return key


def rotation(now: float, overlap: float = DEFAULT_OVERLAP) -> Change:
    """A new key signs; the one before goes on verifying for ``overlap`` seconds."""

    def change(keys: SigningKeys) -> KeyChange:
        fresh = make_signing_key(now)
        return _change(rotated(keys.keys, fresh.public_bytes, now=now, overlap=overlap), fresh)

    return change


def revocation(key_id: str, now: float) -> Change:
    """The key is worth nothing any more; a new one takes its place if it was the one that signs."""

    def change(keys: SigningKeys) -> KeyChange:
        fresh = make_signing_key(now)
        return _change(revoked(keys.keys, key_id, fresh.public_bytes, now=now), fresh)

    return change


def make_keys(organization: str, root: Ed25519PrivateKey, *, now: float) -> SigningKeys:
    """The first keys of an organization."""
    fresh = make_signing_key(now)
    change = _change(first_set(organization, fresh.public_bytes, now=now), fresh)
    return _in_force(change, sign_key_set(encode_key_set(change.keys), root), _public(root))


class KeyRing:
    """An organization's signing keys, its root key and its proposal, in one data directory. Every method blocks."""

    def __init__(self, directory: DataDirectory, organization: str) -> None:
        self.organization = organization
        self.root_key_path = directory.root_key(organization)
        self.proposal_path = directory.proposed_keys(organization)
        self._file = SigningKeyFile(directory.signing_keys(organization))

    def load(self) -> SigningKeys:
        """The keys in force; raises as ``SigningKeyFile.load``."""
        return self._file.load(self.organization)

    def ensure_root(self, now: float) -> SigningKeys:
        """The keys in force, after an organization from before there were root keys got one. Its nodes stay enrolled.

        Raises:
            As ``SigningKeyFile.load``; OSError: something cannot be written.
        """
        keys = self.load()
        if keys.signed:
            return keys
        with self._file.locked():
            keys = self.load()
            if keys.signed:
                return keys
            if not self.root_key_path.exists():
                write_secret(self.root_key_path, root_key_pem(Ed25519PrivateKey.generate()))
            # Another serial, so that agents that know no root take this one for news too.
            change = _renumbered(keys, now)
            return self._save(change, self._sign(change))

    def apply(self, change: Change) -> SigningKeys:
        """Carries out a change with the root key that is here; returns the keys in force.

        Raises:
            RootKeyElsewhere: it is not here.
            As ``SigningKeyFile.load`` and what ``change`` raises; OSError: nothing was changed.
        """
        with self._file.locked():
            before = self.load()
            if not self.root_key_path.exists():
                raise RootKeyElsewhere(
                    f"the root key of {self.organization} is not in {self.root_key_path.parent}: write a proposal with"
                    " --out FILE, sign it where the root key is (key root sign), and import the result (key import)"
                )
            proposed = change(before)
            return self._save(_with_private(proposed, before), self._sign(proposed))

    def propose(self, change: Change) -> bytes:
        """The key set that a change would bring, for the root to sign; replaces an earlier proposal.

        Raises:
            As ``SigningKeyFile.load`` and what ``change`` raises; OSError: nothing was changed.
        """
        with self._file.locked():
            proposed = change(self.load())
            body = encode_key_set(proposed.keys)
            document = {
                "key_set": body.decode("ascii"),
                "private_keys": private_keys_document(proposed.private_keys),
            }
            write_secret(self.proposal_path, json.dumps(document, indent=1).encode("ascii") + b"\n")
            return body

    def import_signed(self, signed: bytes) -> SigningKeys:
        """Puts a proposal into force that the root has signed; returns the keys in force.

        Raises:
            KeySetRefused: not this root's signature, not this organization's, or not newer than what is in force.
            FileUnusable: the set's active key is not among the keys here: it is no proposal of this controller.
            OSError: nothing was changed.
        """
        with self._file.locked():
            before = self.load()
            keys = verify_key_set(signed, before.root_public_key, self.organization, before.keys.serial + 1)
            private = {**before.private_keys, **self._proposed_private_keys()}
            active = next(key.key_id for key in keys.keys if key.state is KeyState.ACTIVE)
            if active not in private:
                raise FileUnusable(
                    f"{self.proposal_path} does not hold the private half of {active}", path=str(self.proposal_path)
                )
            after = self._save(KeyChange(keys=keys, private_keys=private), signed)
            self.proposal_path.unlink(missing_ok=True)
            return after

    def _proposed_private_keys(self) -> Mapping[str, Ed25519PrivateKey]:
        if not self.proposal_path.exists():
            return {}
        data = read_secret(self.proposal_path)
        try:
            return parse_private_keys(json.loads(data)["private_keys"])
        except (ValueError, KeyError, TypeError, AttributeError, ShoveyError) as exc:
            raise FileUnusable(
                f"{self.proposal_path}: damaged ({type(exc).__name__})", path=str(self.proposal_path)
            ) from None

    def _sign(self, change: KeyChange) -> bytes:
        return sign_key_set(encode_key_set(change.keys), load_root_key(self.root_key_path))

    def _save(self, change: KeyChange, signed: bytes) -> SigningKeys:
        root = self.load().root_public_key or _public(load_root_key(self.root_key_path))
        # Found out now, and not by every node: somebody may have put another root key there.
        verify_key_set(signed, root, self.organization)
        after = _in_force(change, signed, root)
        self._file.save(after)
        return after


def _change(keys: KeySet, fresh: SigningKey) -> KeyChange:
    # A revoked key that was not the active one needs no successor: the key made for it is thrown away.
    taken = any(key.key_id == fresh.key_id for key in keys.keys)
    return KeyChange(keys=keys, private_keys={fresh.key_id: fresh.private_key} if taken else {})


def _with_private(change: KeyChange, before: SigningKeys) -> KeyChange:
    return KeyChange(keys=change.keys, private_keys={**before.private_keys, **change.private_keys})


def _in_force(change: KeyChange, signed: bytes, root_public_key: bytes) -> SigningKeys:
    used = {key.key_id for key in change.keys.keys if key.state is not KeyState.REVOKED}
    return SigningKeys(
        keys=change.keys,
        private_keys={key_id: key for key_id, key in change.private_keys.items() if key_id in used},
        signed=signed,
        root_public_key=root_public_key,
    )


def _renumbered(keys: SigningKeys, now: float) -> KeyChange:
    retired_at = int(now + DEFAULT_OVERLAP)
    listed = tuple(
        replace(key, not_after=retired_at) if key.state is KeyState.RETIRING else key for key in keys.keys.keys
    )
    following = KeySet(organization=keys.organization, serial=max(keys.keys.serial + 1, int(now)), keys=listed)
    return KeyChange(keys=following, private_keys=keys.private_keys)


def _public(root: Ed25519PrivateKey) -> bytes:
    return root.public_key().public_bytes_raw()
