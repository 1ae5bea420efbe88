"""The REST shim as one handler: prove who calls, find the route, decide whether they may, do it, say what went wrong.

A request's body is read before its signature is checked, because the signature covers it; so nothing is believed of a
request, not even that its route exists, before it is known who sent it.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import Final

import structlog

from shovey_trio import __version__
from shovey_trio.application.audit import AuditLog, CallOrigin, peer_address, set_origin
from shovey_trio.chef.auth import CHALLENGE, Authenticator
from shovey_trio.core.chef.signing import SignatureMalformed, SignatureRefused
from shovey_trio.core.errors import PermissionDenied, ShoveyError, TooManyFailures
from shovey_trio.core.jobs.model import Principal, Role
from shovey_trio.http.messages import HttpRefused, Reply, Request, Response, error_response
from shovey_trio.shovey.rest.routing import Call, Route, Router, Target, read_target

_log = structlog.get_logger(__name__)

# What Chef's clients look for: the version of the protocol family, and that the API versions they ask for exist.
_CHEF_VERSION: Final = "11.1.7"
_API_VERSIONS: Final = range(3)
_INFO: Final = f"flavor=osc;version:{_CHEF_VERSION};shovey-trio={__version__}"
_FORBIDDEN: Final = {"status": "You must be an admin to do that"}

PassOn = Callable[[Request, Reply], Awaitable[None]]


class RestApplication:
    """Handles every request of the REST listener.

    Args:
        organization: whose paths have no ``/organizations/ORG``.
        known_as: its name at the Chef server, which paths may use as well.
        body_limit: bytes of a body.
        pass_on: where requests outside of our routes go; None answers 404.
        passed_areas: first words of paths that go there although we have routes of that name.
    """

    def __init__(
        self,
        router: Router,
        authenticator: Authenticator,
        *,
        organization: str,
        body_limit: int,
        known_as: str = "",
        pass_on: PassOn | None = None,
        passed_areas: frozenset[str] = frozenset(),
        documents: Mapping[str, Response] | None = None,
        audit: AuditLog | None = None,
    ) -> None:
        self._audit = audit
        self._router = router
        self._authenticator = authenticator
        self._organization = organization
        self._known_as = known_as
        self._body_limit = body_limit
        self._pass_on = pass_on
        self._passed_areas = passed_areas
        self._documents = documents or {}

    async def __call__(self, request: Request, reply: Reply) -> None:
        """Answers one request.

        Raises:
            HttpRefused: before the body was read; the connection answers it, and closes.
        """
        document = self._documents.get(request.path) if request.method in {"GET", "HEAD"} else None
        if document is not None:
            await reply.send(document)
            return
        target = read_target(request.path, self._organization, known_as=self._known_as)
        if target.area not in self._router.areas or (self._pass_on and target.area in self._passed_areas):
            if self._pass_on is None:
                await request.body.read(self._body_limit)
                await reply.send(_answer(request, 404, "there is nothing here", {}))
            else:
                await self._pass_on(request, reply)
            return
        set_origin(CallOrigin(method=f"{request.method} /{target.area[:64]}", peer=peer_address(request.peer)))
        try:
            self._authenticator.check(request)
        except TooManyFailures as error:
            retry_after = {"Retry-After": error.details["retry_after_s"]}
            raise HttpRefused(error.http, error.message, headers=retry_after) from error
        body = await request.body.read(self._body_limit)
        shown = _Chef(reply, request)
        try:
            await self._handle(request, target, body, shown)
        except (SignatureMalformed, SignatureRefused) as error:
            _log.info("rest.unauthenticated", peer=request.peer, path=request.path, error=error.message)
            await reply.send(_answer(request, error.http, error.message, CHALLENGE))
        except HttpRefused as error:
            await reply.send(_answer(request, error.status, error.message, error.headers))
        except ShoveyError as error:
            _log.log(_level(error), "rest.refused", path=request.path, reason=error.reason, error=error.message)
            if self._audit is not None and isinstance(error, PermissionDenied):
                self._audit.note_refused(error)
            if shown.begun:
                raise
            retry = {"Retry-After": error.details["retry_after_s"]} if "retry_after_s" in error.details else {}
            await reply.send(_answer(request, error.http, error.message, retry))

    async def _handle(self, request: Request, target: Target, body: bytes, reply: Reply) -> None:
        signed = await self._authenticator.authenticate(request, body, target.organization)
        route, params = self._router.find(request.method, target)
        set_origin(
            CallOrigin(
                # The route, not the path: names of jobs would make every call another kind.
                method=f"{request.method} {route.template}",
                peer=peer_address(request.peer),
                rule=f"policy: role {signed.principal.role.value}",
                principal=signed.principal.label,
                organization=signed.principal.organization,
            )
        )
        _authorize(signed.principal, route, target)
        if self._audit is not None and request.method in {"GET", "HEAD"} and signed.principal.role is not Role.NODE:
            self._audit.note_call(signed.principal)
        call = Call(
            principal=signed.principal,
            target=target,
            params=params,
            request=request,
            signature=signed.signature,
            body=body,
        )
        await route.handle(call, reply)


class _Chef:
    """A reply with the headers that Chef's clients expect."""

    def __init__(self, reply: Reply, request: Request) -> None:
        self._reply = reply
        self._headers = _chef_headers(request)
        self.begun = False

    async def send(self, response: Response) -> None:
        self.begun = True
        headers = {**self._headers, **response.headers}
        await self._reply.send(
            Response(status=response.status, body=response.body, content_type=response.content_type, headers=headers)
        )

    async def begin(self, status: int, headers: Mapping[str, str]) -> None:
        self.begun = True
        await self._reply.begin(status, {**self._headers, **headers})

    async def write(self, data: bytes) -> None:
        await self._reply.write(data)

    async def hold(self, wait: Callable[[], Awaitable[None]]) -> None:
        await self._reply.hold(wait)


def _authorize(principal: Principal, route: Route, target: Target) -> None:
    if principal.role not in route.roles:
        text = _FORBIDDEN.get(target.area, "you cannot perform this action")
        raise PermissionDenied(text, principal=principal.label)


def _answer(request: Request, status: int, text: str, headers: Mapping[str, str]) -> Response:
    return error_response(status, text, {**_chef_headers(request), **headers})


def _chef_headers(request: Request) -> Mapping[str, str]:
    return _headers_for(request.headers.get("x-ops-server-api-version", "0"))


@lru_cache(maxsize=64)
def _headers_for(asked: str) -> Mapping[str, str]:
    number = int(asked) if asked.isascii() and asked.isdigit() and len(asked) < 4 else 0
    versions = {
        "min_version": str(_API_VERSIONS[0]),
        "max_version": str(_API_VERSIONS[-1]),
        "request_version": str(number),
        "response_version": str(min(number, _API_VERSIONS[-1])),
    }
    return {
        "X-Chef-Version": _CHEF_VERSION,
        "X-Ops-Api-Info": _INFO,
        "X-Ops-Server-Api-Version": json.dumps(versions),
    }


def _level(error: ShoveyError) -> int:
    """Errors of ours are worth a look; those of callers are their own."""
    return 40 if error.http >= 500 else 20
