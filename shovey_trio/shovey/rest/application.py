"""The REST shim as one handler: prove who calls, find the route, decide whether they may, do it, say what went wrong.

A request's body is read before its signature is checked, because the signature covers it; so nothing is believed of a
request, not even that its route exists, before it is known who sent it.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Final

import structlog
from starlette.requests import Request
from starlette.responses import Response

from shovey_trio import __version__
from shovey_trio.application.audit import AuditLog, CallOrigin, set_origin
from shovey_trio.chef.auth import CHALLENGE, Authenticator, SignedCall
from shovey_trio.core.chef.signing import SignatureMalformed, SignatureRefused
from shovey_trio.core.errors import PermissionDenied, ShoveyError, TooManyFailures
from shovey_trio.core.jobs.model import Principal, Role
from shovey_trio.core.trust.authz import may
from shovey_trio.http.asgi import App, Receive, Scope, Send, peer_of, read_body
from shovey_trio.http.messages import HttpRefused, error_response
from shovey_trio.shovey.rest.routing import CHEFS_OWN, Call, RestRoute, Router, Target, read_target

_log = structlog.get_logger(__name__)

# What Chef's clients look for: the version of the protocol family, and that the API versions they ask for exist.
_CHEF_VERSION: Final = "11.1.7"
_API_VERSIONS: Final = range(3)
_INFO: Final = f"flavor=osc;version:{_CHEF_VERSION};shovey-trio={__version__}"
_FORBIDDEN: Final = {"status": "You must be an admin to do that"}


class RestApplication:
    """Handles every request of the REST listener; an ASGI application.

    Args:
        routes: what can be asked.
        organization: whose paths have no ``/organizations/ORG``.
        known_as: its name at the Chef server, which paths may use as well.
        organization_of: which one a request is for, if its path need not say it; None goes by the path.
        body_limit: bytes of a body.
        body_time: seconds for a body.
        pass_on: where requests outside of our routes go; None answers 404.
        passed_areas: first words of paths that go there although we have routes of that name.
        documents: what is answered to whoever asks, by path.
    """

    def __init__(
        self,
        routes: Iterable[RestRoute],
        authenticator: Authenticator,
        *,
        organization: str,
        body_limit: int,
        body_time: float,
        known_as: str = "",
        organization_of: Callable[[str, Target], Awaitable[str]] | None = None,
        pass_on: App | None = None,
        passed_areas: frozenset[str] = frozenset(),
        documents: Mapping[str, Response] | None = None,
        audit: AuditLog | None = None,
    ) -> None:
        self._audit = audit
        self._router = Router(routes)
        self._authenticator = authenticator
        self._organization = organization
        self._known_as = known_as
        self._organization_of = organization_of
        self._body_limit = body_limit
        self._body_time = body_time
        self._pass_on = pass_on
        self._passed_areas = passed_areas
        self._documents = documents or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request.

        Raises:
            HttpRefused: before the body was read; the connection answers it, and closes.
        """
        path, method = scope["raw_path"].decode("ascii"), scope["method"]
        document = self._documents.get(path) if method in {"GET", "HEAD"} else None
        if document is not None:
            await document(scope, receive, send)
            return
        target = read_target(path, self._organization, known_as=self._known_as)
        request = Request(scope, receive, send)
        if target.area not in self._router.areas or (self._pass_on and target.area in self._passed_areas):
            if self._pass_on is None:
                await read_body(request, limit=self._body_limit, within=self._body_time)
                await _error(request, 404, CHEFS_OWN)(scope, receive, send)
            else:
                await self._pass_on(scope, receive, send)
            return
        set_origin(CallOrigin(method=f"{method} /{target.area[:64]}", peer=peer_of(request)))
        try:
            self._authenticator.check(request)
        except TooManyFailures as error:
            retry_after = {"Retry-After": error.details["retry_after_s"]}
            raise HttpRefused(error.http, error.message, headers=retry_after) from error
        body = await read_body(request, limit=self._body_limit, within=self._body_time)
        try:
            if self._organization_of is not None:
                target = replace(target, organization=await self._organization_of(method, target))
            signed = await self._authenticator.authenticate(request, body, target.organization)
            scope["path"] = target.path
            response = await self._answer(self._router.find(scope), request, target, signed, body)
        except ShoveyError as error:
            response = self._refused(request, error)
        await response(scope, receive, send)

    def _refused(self, request: Request, error: ShoveyError) -> Response:
        match error:
            case SignatureMalformed() | SignatureRefused():
                path = request.scope["raw_path"].decode("ascii")
                _log.info("rest.unauthenticated", peer=peer_of(request), path=path, error=error.message)
                return _error(request, error.http, error.message, CHALLENGE)
            case HttpRefused():
                return _error(request, error.status, error.message, error.headers)
        _log.log(_level(error), "rest.refused", path=request.scope["path"], reason=error.reason, error=error.message)
        if self._audit is not None and isinstance(error, PermissionDenied):
            self._audit.note_refused(error)
        retry = {"Retry-After": error.details["retry_after_s"]} if "retry_after_s" in error.details else {}
        return _error(request, error.http, error.message, retry)

    async def _answer(
        self, route: RestRoute, request: Request, target: Target, signed: SignedCall, body: bytes
    ) -> Response:
        principal = signed.principal
        set_origin(
            CallOrigin(
                # The route, not the path: names of jobs would make every call another kind.
                method=f"{request.method} {route.template}",
                peer=peer_of(request),
                rule=f"policy: role {principal.role.value}",
                principal=principal.label,
                organization=principal.organization,
            )
        )
        _authorize(principal, route, target)
        if self._audit is not None and request.method in {"GET", "HEAD"} and principal.role is not Role.NODE:
            self._audit.note_call(principal)
        call = Call(principal=principal, target=target, request=request, signature=signed.signature, body=body)
        response = await route.handle(call)
        response.raw_headers.extend(_chef_headers(request))
        return response


def _authorize(principal: Principal, route: RestRoute, target: Target) -> None:
    if not may(principal.role, route.action):
        text = _FORBIDDEN.get(target.area, "you cannot perform this action")
        raise PermissionDenied(text, principal=principal.label)


def _error(request: Request, status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    response = error_response(status, text, headers)
    response.raw_headers.extend(_chef_headers(request))
    return response


def _chef_headers(request: Request) -> Sequence[tuple[bytes, bytes]]:
    return _headers_for(request.headers.get("x-ops-server-api-version", "0"))


@lru_cache(maxsize=64)
def _headers_for(asked: str) -> Sequence[tuple[bytes, bytes]]:
    number = int(asked) if asked.isascii() and asked.isdigit() and len(asked) < 4 else 0
    versions = {
        "min_version": str(_API_VERSIONS[0]),
        "max_version": str(_API_VERSIONS[-1]),
        "request_version": str(number),
        "response_version": str(min(number, _API_VERSIONS[-1])),
    }
    return (
        (b"x-chef-version", _CHEF_VERSION.encode()),
        (b"x-ops-api-info", _INFO.encode()),
        (b"x-ops-server-api-version", json.dumps(versions).encode()),
    )


def _level(error: ShoveyError) -> int:
    """Errors of ours are worth a look; those of callers are their own."""
    return 40 if error.http >= 500 else 20
