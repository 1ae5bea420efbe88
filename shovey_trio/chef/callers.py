"""Chef principals that are stored here: who they are, for the REST shim's every request.

What a user may do is said in one place: a user who is known here has the role they have over gRPC. A Chef principal's
own role counts for nodes, and for users that are known by their key alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, Protocol

import structlog
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from shovey_trio.core.chef.keys import ChefKey, read_chef_keys, write_chef_keys
from shovey_trio.core.chef.principals import ChefPrincipal, ChefPrincipalKind
from shovey_trio.core.errors import InvalidRequest, NotFound
from shovey_trio.core.jobs.model import Principal, Role, User
from shovey_trio.nursery.ports import Clock
from shovey_trio.store.contract import ChefPrincipalStore, UserStore

_log = structlog.get_logger(__name__)

# How old what is in memory may be, in seconds: commands on the controller's host change the store beside the daemon.
_FRESH: Final = 10.0
# An unknown name makes it look again, but strangers must not make it read the store all the time.
_LOOK_AGAIN: Final = 1.0
# Principals whose parsed keys are kept: 20,000 × ~4 KiB = 80 MB when full.
_KEYS: Final = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ChefCaller:
    """Somebody who may have signed a request, with the key to check it by."""

    principal: Principal
    key: RSAPublicKey


class ChefStore(ChefPrincipalStore, UserStore, Protocol):
    """What of a store Chef principals need."""


class StoredChefCallers:
    """The callers in the store, about 1 KiB each in memory. What a command changes holds within ten seconds."""

    def __init__(self, *, store: ChefStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._loaded_at = float("-inf")
        self._known: Mapping[tuple[str, str], tuple[ChefPrincipal, ...]] = {}

    async def load(self) -> None:
        """Reads all of them; at start, on reload, and now and then by itself."""
        self._loaded_at = self._clock.now()
        roles = {(user.organization, user.name): user.role for user in await self._store.load_users()}
        known: dict[tuple[str, str], tuple[ChefPrincipal, ...]] = {}
        for stored in await self._store.load_chef_principals():
            key = (stored.organization, stored.name)
            is_user = stored.kind is ChefPrincipalKind.USER
            principal = replace(stored, role=roles.get(key, stored.role)) if is_user else stored
            known[key] = (*known.get(key, ()), principal)
        self._known = known

    async def find(self, organization: str, name: str) -> Sequence[ChefCaller]:
        """A user, a node, both or nobody of this name, once for each of their keys.

        Raises:
            StoreUnavailable: what is known is too old, and the store cannot be read.
        """
        age = self._clock.now() - self._loaded_at
        if not 0 <= age <= (_FRESH if (organization, name) in self._known else _LOOK_AGAIN):
            await self.load()
        return [caller for stored in self._known.get((organization, name), ()) for caller in _callers(stored)]


class ChefPrincipals:
    """Changing the Chef principals in a store; for the offline commands."""

    def __init__(self, *, store: ChefStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def add_key(
        self,
        *,
        organization: str,
        kind: ChefPrincipalKind,
        name: str,
        role: Role | None,
        public_key: str,
        alone: bool = False,
    ) -> ChefPrincipal:
        """Lets a principal sign with a further key; who is not there yet is made.

        Args:
            role: what a user may do from now on, over gRPC as well; None leaves it as it is.
            public_key: PEM; several blocks are several keys.
            alone: the keys that were there before do not hold any more.

        Raises:
            InvalidRequest: the key is none, there are too many, or a new user comes without a role.
        """
        given = read_chef_keys(public_key)
        known = await self._find(organization, kind, name)
        before = () if known is None or alone else read_chef_keys(known.public_key)
        pem = write_chef_keys((*before, *given))
        read_chef_keys(pem)
        if kind is ChefPrincipalKind.NODE:
            role = Role.NODE
        else:
            role = await self._give_role(organization, name, role, before=known.role if known else None)
        principal = ChefPrincipal(
            organization=organization,
            kind=kind,
            name=name,
            role=role,
            public_key=pem,
            created_at=known.created_at if known else self._clock.now(),
        )
        await self._store.write_chef_principals([principal])
        return principal

    async def list(self, organization: str, kind: ChefPrincipalKind) -> Sequence[ChefPrincipal]:
        """All of a kind, by name."""
        stored = await self._store.load_chef_principals()
        return [principal for principal in stored if (principal.organization, principal.kind) == (organization, kind)]

    async def remove_key(
        self, organization: str, kind: ChefPrincipalKind, name: str, key_id: str = ""
    ) -> Sequence[ChefKey]:
        """Takes one key away, or all; returns those that are left.

        Raises:
            NotFound: there is no such key.
        """
        known = await self._find(organization, kind, name)
        if known is None:
            raise NotFound(f"no {kind} {name} has a Chef key", name=name)
        keys = read_chef_keys(known.public_key)
        left = [key for key in keys if key_id and key.key_id != key_id]
        if len(left) == len(keys):
            raise NotFound(f"{kind}/{name} has no key {key_id}", name=name, key_id=key_id)
        if left:
            await self._store.write_chef_principals([replace(known, public_key=write_chef_keys(left))])
        else:
            await self._store.remove_chef_principal(organization, kind, name)
        return left

    async def _give_role(self, organization: str, name: str, role: Role | None, *, before: Role | None) -> Role:
        """Makes the user, or changes their role; returns the role that holds."""
        users = {(user.organization, user.name): user for user in await self._store.load_users()}
        known = users.get((organization, name))
        if known is not None and role in (None, known.role):
            return known.role
        role = role or before
        if role is None:
            raise InvalidRequest(f"there is no user {name} yet; say which role it has", field="role")
        created_at = self._clock.now() if known is None else known.created_at
        await self._store.write_user(User(name=name, organization=organization, role=role, created_at=created_at))
        return role

    async def _find(self, organization: str, kind: ChefPrincipalKind, name: str) -> ChefPrincipal | None:
        return next((found for found in await self.list(organization, kind) if found.name == name), None)


def _callers(stored: ChefPrincipal) -> Sequence[ChefCaller]:
    try:
        return [ChefCaller(principal=stored.principal, key=key) for key in _keys(stored.public_key)]
    except InvalidRequest as error:
        # Checked before it was stored; so the store was changed by other means.
        _log.error("chef_key.unreadable", principal=stored.principal.label, error=error.message)
        return ()


@lru_cache(maxsize=_KEYS)
def _keys(pem: str) -> tuple[RSAPublicKey, ...]:
    return tuple(key.public_key for key in read_chef_keys(pem))
