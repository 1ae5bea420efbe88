"""Chef principals that are stored here: who they are, for the REST shim's every request.

What a user may do is said in one place: a user who is known here has the role they have over gRPC. A Chef principal's
own role counts for nodes, and for users that are known by their key alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import structlog
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from shovey_trio.application.chef_keys import ChefStore
from shovey_trio.core.chef.keys import read_chef_keys
from shovey_trio.core.chef.principals import ChefPrincipal, ChefPrincipalKind
from shovey_trio.core.errors import InvalidRequest
from shovey_trio.core.jobs.model import Principal
from shovey_trio.nursery.ports import Clock

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
