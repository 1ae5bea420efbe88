"""Who is calling, and whether they may: the hook that runs before every handler."""

from __future__ import annotations

from contextvars import ContextVar
from functools import lru_cache
from typing import Any

from shovey_trio.application.attempts import FailedAttempts
from shovey_trio.application.audit import AuditLog, CallOrigin, set_origin
from shovey_trio.application.identities import Identities
from shovey_trio.core.addresses import peer_address
from shovey_trio.core.errors import PermissionDenied, Unauthenticated
from shovey_trio.core.jobs.model import Principal
from shovey_trio.core.trust.authz import METHODS, Action, may_call, refusal
from shovey_trio.identity.authority import read_certificates, serial_of
from shovey_trio.identity.names import Identity, parse_identity
from shovey_trio.rpc.bridge import RpcStatus, ServerCall
from shovey_trio.rpc.bridge.tls import uri_identities
from shovey_trio.rpc.errors import status_of

_caller: ContextVar[Principal] = ContextVar("caller")

# One entry per certificate that called lately: 20,000 × ~2 KiB = 40 MB when full.
_CERTIFICATES = 20_000

# What the audit log learns from the action itself, and what agents do all day.
_RECORDED_OTHERWISE = frozenset(
    f"/shovey_trio.v1.{name}"
    for name in (
        "JobService/StartJob",
        "JobService/CancelJob",
        "NodeService/RemoveNode",
        "AgentService/Attach",
        "AgentService/PushOutput",
        "KeyService/GetSigningKeys",
        "AdminService/CreateUserCertificate",
        "AdminService/RemoveUser",
        "AdminService/CreateEnrollmentToken",
    )
)


def caller() -> Principal:
    """The principal whose call is being handled; only inside a handler of a method that is not public."""
    return _caller.get()


class Gatekeeper:
    """Authenticates and authorizes each call."""

    def __init__(self, identities: Identities, *, audit: AuditLog, attempts: FailedAttempts) -> None:
        self._identities = identities
        self._audit = audit
        self._attempts = attempts

    async def __call__(self, call: ServerCall[Any, Any]) -> None:
        """Raises ``Unauthenticated``, ``TooManyFailures`` or ``PermissionDenied``; sets ``caller()`` otherwise."""
        path = call.method.path
        address = peer_address(call.peer)
        if METHODS.get(path) is Action.ANYBODY:
            set_origin(CallOrigin(method=path, peer=address, rule="policy: public"))
            return
        set_origin(CallOrigin(method=path, peer=address))
        principal = await self._principal(call, address)
        rule = f"policy: role {principal.role.value}"
        set_origin(
            CallOrigin(
                method=path,
                peer=address,
                rule=rule,
                principal=principal.label,
                organization=principal.organization,
            )
        )
        if not may_call(principal.role, path):
            raise PermissionDenied(refusal(principal, path), principal=principal.label)
        _caller.set(principal)
        if path not in _RECORDED_OTHERWISE:
            self._audit.note_call(principal)

    async def _principal(self, call: ServerCall[Any, Any], address: str) -> Principal:
        """Whose certificate it is. Good callers are never held up by what fails at the same address."""
        certificate = call.peer_certificate  # each look makes a new one
        if certificate is None:
            error = Unauthenticated("this call needs a client certificate")
            self._attempts.check(address, "")
            self._attempts.failed(error, address, "")
            raise error
        identity, serial = _read(certificate)
        try:
            principal = await self._identities.principal(identity, serial)
        except Unauthenticated as error:
            self._attempts.check(address, identity.label)
            self._attempts.failed(error, address, identity.label)
            raise
        # From this moment on, with nothing awaited in between, revoking the certificate ends the call.
        call.owner = serial
        return principal

    def status_of(self, error: Exception) -> RpcStatus | None:
        """The status of an error that a handler let out; what was refused, by policy or by a grant, is noted."""
        if isinstance(error, PermissionDenied):
            self._audit.note_refused(error)
        return status_of(error)


@lru_cache(maxsize=_CERTIFICATES)
def _read(certificate: bytes) -> tuple[Identity, str]:
    return parse_identity(uri_identities(certificate)), serial_of(read_certificates(certificate)[0])
