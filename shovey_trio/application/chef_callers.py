"""Chef principals that are stored here: who they are, for the REST shim's every request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import structlog
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from shovey_trio.core.chef_principals import ChefPrincipal, ChefPrincipalKind
from shovey_trio.core.chef_signing import load_public_key
from shovey_trio.core.errors import InvalidRequest, NotFound
from shovey_trio.core.model import Principal, Role
from shovey_trio.nursery.ports import Clock, Store

_log = structlog.get_logger(__name__)

# How old what is in memory may be, in seconds: commands on the controller's host change the store beside the daemon.
_FRESH: Final = 10.0
# An unknown name makes it look again, but strangers must not make it read the store all the time.
_LOOK_AGAIN: Final = 1.0
# Parsed keys kept: 20,000 × ~4 KiB = 80 MB when full.
_KEYS: Final = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ChefCaller:
    """Somebody who may have signed a request, with the key to check it by."""

    principal: Principal
    key: RSAPublicKey


class StoredChefCallers:
    """The callers in the store, about 1 KiB each in memory. What a command changes holds within ten seconds."""

    def __init__(self, *, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._loaded_at = float("-inf")
        self._known: Mapping[tuple[str, str], tuple[ChefPrincipal, ...]] = {}

    async def load(self) -> None:
        """Reads all of them; at start, on reload, and now and then by itself."""
        self._loaded_at = self._clock.now()
        known: dict[tuple[str, str], tuple[ChefPrincipal, ...]] = {}
        for principal in await self._store.load_chef_principals():
            key = (principal.organization, principal.name)
            known[key] = (*known.get(key, ()), principal)
        self._known = known

    async def find(self, organization: str, name: str) -> Sequence[ChefCaller]:
        """A user, a node, both or nobody of this name.

        Raises:
            StoreUnavailable: what is known is too old, and the store cannot be read.
        """
        age = self._clock.now() - self._loaded_at
        if not 0 <= age <= (_FRESH if (organization, name) in self._known else _LOOK_AGAIN):
            await self.load()
        return [caller for stored in self._known.get((organization, name), ()) if (caller := _caller(stored))]


class ChefPrincipals:
    """Changing the Chef principals in a store; for the offline commands."""

    def __init__(self, *, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def put(
        self, *, organization: str, kind: ChefPrincipalKind, name: str, role: Role | None, public_key: str
    ) -> ChefPrincipal:
        """Stores a principal, or a new key (and, if it is given, role) for one that is there.

        Raises:
            InvalidRequest: the key is none, or a new user comes without a role.
        """
        load_public_key(public_key)
        known = await self._find(organization, kind, name)
        if kind is ChefPrincipalKind.NODE:
            role = Role.NODE
        if role is None and known is None:
            raise InvalidRequest(f"there is no user {name} yet; say which role it has", field="role")
        if known is not None:
            principal = replace(known, public_key=public_key, role=role or known.role)
        else:
            principal = ChefPrincipal(
                organization=organization,
                kind=kind,
                name=name,
                role=role or Role.NODE,
                public_key=public_key,
                created_at=self._clock.now(),
            )
        await self._store.write_chef_principals([principal])
        return principal

    async def list(self, organization: str, kind: ChefPrincipalKind) -> Sequence[ChefPrincipal]:
        """All of a kind, by name."""
        stored = await self._store.load_chef_principals()
        return [principal for principal in stored if (principal.organization, principal.kind) == (organization, kind)]

    async def remove(self, organization: str, kind: ChefPrincipalKind, name: str) -> None:
        """Takes a principal's key away.

        Raises:
            NotFound: there is none.
        """
        if not await self._store.remove_chef_principal(organization, kind, name):
            raise NotFound(f"no {kind} {name} has a Chef key", name=name)

    async def _find(self, organization: str, kind: ChefPrincipalKind, name: str) -> ChefPrincipal | None:
        return next((found for found in await self.list(organization, kind) if found.name == name), None)


def _caller(stored: ChefPrincipal) -> ChefCaller | None:
    try:
        return ChefCaller(principal=stored.principal, key=_key(stored.public_key))
    except InvalidRequest as error:
        # Checked before it was stored; so the store was changed by other means.
        _log.error("chef_key.unreadable", principal=stored.principal.label, error=error.message)
        return None


@lru_cache(maxsize=_KEYS)
def _key(pem: str) -> RSAPublicKey:
    return load_public_key(pem)
