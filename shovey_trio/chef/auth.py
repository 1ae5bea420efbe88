"""Who is calling the REST shim: a request's signature against the keys that are known here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from starlette.requests import Request

from shovey_trio.application.attempts import FailedAttempts
from shovey_trio.chef.callers import ChefCaller
from shovey_trio.core.chef.signing import (
    ChefSignature,
    SignatureMalformed,
    SignatureRefused,
    read_signature,
    verify_signature,
)
from shovey_trio.core.jobs.model import Principal
from shovey_trio.http.asgi import peer_of
from shovey_trio.nursery.ports import Clock

#: What a refused request is told: how to sign.
CHALLENGE: Final = {"Www-Authenticate": ", ".join(f'X-Ops-Sign version="{v}"' for v in ("1.0", "1.1", "1.2", "1.3"))}


class ChefCallers(Protocol):
    """Where the keys are."""

    async def find(self, organization: str, name: str) -> Sequence[ChefCaller]:
        """Everybody of this name: a user, a node, both or nobody.

        Raises:
            ShoveyError: it cannot be said now.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedCall:
    """A request whose signature holds."""

    principal: Principal
    signature: ChefSignature


class Authenticator:
    """Verifies requests."""

    def __init__(
        self, callers: ChefCallers, *, clock: Clock, clock_skew: float, attempts: FailedAttempts | None = None
    ) -> None:
        self._attempts = attempts
        self._callers = callers
        self._clock = clock
        self._clock_skew = clock_skew

    async def authenticate(self, request: Request, body: bytes, organization: str) -> SignedCall:
        """Who signed a request.

        Raises:
            SignatureMalformed, SignatureRefused: nobody, as far as can be seen.
            ShoveyError: the keys cannot be looked up now.
        """
        try:
            return await self._authenticate(request, body, organization)
        except (SignatureMalformed, SignatureRefused) as error:
            if self._attempts is not None:
                self._attempts.failed(error, peer_of(request), _claimed(request))
            raise

    def check(self, request: Request) -> None:
        """Before a request is read.

        Raises:
            TooManyFailures: its sender has failed too often to prove who it is.
        """
        if self._attempts is not None:
            self._attempts.check(peer_of(request), _claimed(request))

    async def _authenticate(self, request: Request, body: bytes, organization: str) -> SignedCall:
        # Starlette's own look-up goes through all headers for each.
        headers = dict(request.headers.items())
        signature = read_signature(headers, body, now=self._clock.now(), clock_skew=self._clock_skew)
        refused = SignatureRefused.unknown_user(signature.user)
        for caller in await self._callers.find(organization, signature.user):
            try:
                verify_signature(
                    signature, method=request.method, path=request.scope["raw_path"].decode("ascii"), key=caller.key
                )
            except SignatureRefused as error:
                refused = error
            else:
                return SignedCall(principal=caller.principal, signature=signature)
        raise refused


def _claimed(request: Request) -> str:
    """The name that a request gives; nothing says that it is true."""
    return request.headers.get("x-ops-userid", "")[:128]
