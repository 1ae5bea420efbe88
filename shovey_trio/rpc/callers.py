"""Who is calling, and whether they may: the hook that runs before every handler."""

from __future__ import annotations

from contextvars import ContextVar
from functools import lru_cache
from typing import Any

from shovey_trio.application.identities import Identities
from shovey_trio.core.authz import POLICY, PUBLIC, may_call
from shovey_trio.core.errors import PermissionDenied, Unauthenticated
from shovey_trio.core.model import Principal
from shovey_trio.identity.authority import read_certificates, serial_of
from shovey_trio.identity.names import Identity, parse_identity
from shovey_trio.rpc.bridge import ServerCall

_caller: ContextVar[Principal] = ContextVar("caller")

# One entry per certificate that called lately: 20,000 × ~2 KiB = 40 MB when full.
_CERTIFICATES = 20_000


def caller() -> Principal:
    """The principal whose call is being handled; only inside a handler of a method that is not public."""
    return _caller.get()


class Gatekeeper:
    """Authenticates and authorizes each call."""

    def __init__(self, identities: Identities) -> None:
        self._identities = identities

    async def __call__(self, call: ServerCall[Any, Any]) -> None:
        """Raises ``Unauthenticated`` or ``PermissionDenied``; sets ``caller()`` otherwise."""
        path = call.method.path
        if POLICY.get(path) is PUBLIC:
            return
        if call.peer_certificate is None:
            raise Unauthenticated("this call needs a client certificate")
        identity, serial = _read(call.peer_certificate, call.identities)
        principal = await self._identities.principal(identity, serial)
        if not may_call(principal.role, path):
            raise PermissionDenied(
                f"{principal.label} ({principal.role.value}) may not call {path.rpartition('/')[2]}",
                principal=principal.label,
            )
        _caller.set(principal)


@lru_cache(maxsize=_CERTIFICATES)
def _read(certificate: bytes, uris: tuple[str, ...]) -> tuple[Identity, str]:
    return parse_identity(uris), serial_of(read_certificates(certificate)[0])
