"""The Chef server behind the shim: who has which key and rights there, and everything that is not ours.

Works with goiardi 0.11, which has no organizations, and with servers that have them. Answers are remembered, those
that there is nobody too; a server that cannot be reached or answers nonsense proves nothing, and the caller is told to
come again.
"""

from __future__ import annotations

import json
import re
import ssl
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

import httpx2
import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from starlette.requests import Request

from shovey_trio.chef.auth import ChefCallers
from shovey_trio.chef.callers import ChefCaller
from shovey_trio.config.server import ChefSection
from shovey_trio.core.chef.signing import load_private_key, load_public_key, sign_request
from shovey_trio.core.errors import InvalidRequest, Unreachable
from shovey_trio.core.jobs.model import Principal, Role
from shovey_trio.http.asgi import PiecesResponse, Receive, Scope, Send, Write
from shovey_trio.http.messages import error_response
from shovey_trio.identity.files import read_secret
from shovey_trio.nursery.ports import Clock

_log = structlog.get_logger(__name__)

# Remembered names: 10,000 × ~4 KiB = 40 MB when full, the longest unused forgotten first.
_REMEMBERED: Final = 10_000
# Questions at a time; strangers' names are questions too.
_QUESTIONS: Final = 8
_CONNECTIONS: Final = 100
# Chef's names of users and clients; nobody has another, so nothing else is asked for.
_NAME: Final = re.compile(r"[A-Za-z0-9_.@:-]{1,255}")
# Groups inside groups that are looked into for an admin.
_MOST_GROUPS: Final = 20
# Bytes of an answer about a principal.
_LARGEST_ANSWER: Final = 1_000_000
# RFC 9110 section 7.6.1: these are between two neighbours and are not passed on.
_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        # Answered by our own listener already.
        "expect",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Remembered:
    until: float
    callers: tuple[ChefCaller, ...]


@dataclass(slots=True)
class _Question:
    """A name that is being asked for; at most one per open connection."""

    answered: trio.Event = field(default_factory=trio.Event)
    failure: Unreachable | None = None


class ChefServer:
    """A Chef server; made by ``open_chef_server``.

    Implements ``chef.auth.ChefCallers``.
    """

    def __init__(
        self, http: httpx2.AsyncClient, *, settings: ChefSection, key: RSAPrivateKey, organization: str, clock: Clock
    ) -> None:
        self._http = http
        self._settings = settings
        self._key = key
        self._organization = organization
        self._clock = clock
        self._base = settings.server_url.rstrip("/")
        self._prefix = f"/organizations/{settings.organization}" if settings.organization else ""
        self._asking: dict[str, _Question] = {}
        self._remembered: OrderedDict[str, _Remembered] = OrderedDict()
        self._limiter = trio.CapacityLimiter(_QUESTIONS)

    async def find(self, organization: str, name: str) -> Sequence[ChefCaller]:
        """Who has this name at the Chef server.

        Raises:
            Unreachable: the server did not say.
        """
        if organization != self._organization or not _NAME.fullmatch(name):
            return ()
        while (known := self._recall(name)) is None:
            asking = self._asking.get(name)
            if asking is None:
                return await self._ask_once(name)
            await asking.answered.wait()
            if asking.failure is not None:
                raise Unreachable(asking.failure.message) from asking.failure
        return known

    async def pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends a request on as it came, signature and all, and the answer back as it comes; an ASGI application."""
        request = Request(scope, receive, send)
        query = scope["query_string"]
        headers = [(name, value) for name, value in request.headers.items() if name not in _HOP_BY_HOP]
        has_body = "content-length" in request.headers or "transfer-encoding" in request.headers
        outgoing = self._http.build_request(
            request.method,
            self._base,
            headers=headers,
            content=_PassedBody(receive) if has_body else None,
            # The path is signed as it is on the wire, so nothing may touch it.
            extensions={"target": scope["raw_path"] + (b"?" + query if query else b"")},
        )
        for name in ("accept-encoding", "user-agent", "accept"):
            if name not in request.headers:
                outgoing.headers.pop(name, None)
        try:
            answer = await self._http.send(outgoing, stream=True)
        except httpx2.TransportError as error:
            _log.warning("chef_server.unreachable", error=repr(error))
            await error_response(502, "the Chef server cannot be reached")(scope, receive, send)
            return
        try:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP_BY_HOP}

            async def pieces(write: Write) -> None:
                async for piece in answer.aiter_raw():
                    await write(piece)

            passed = PiecesResponse(pieces, status_code=answer.status_code)
            passed.raw_headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in kept.items()]
            await passed(scope, receive, send)
        finally:
            with trio.CancelScope(deadline=trio.current_time() + self._settings.timeout, shield=True):
                await answer.aclose()

    # -- asking

    async def _ask_once(self, name: str) -> tuple[ChefCaller, ...]:
        """Asks and remembers; whoever wants to know the same meanwhile waits for this answer, or shares the failure."""
        asking = self._asking[name] = _Question()
        try:
            async with self._limiter:
                found = await self._ask(name)
            self._remember(name, found)
        except Unreachable as failure:
            asking.failure = failure
            raise
        finally:
            # A caller that goes away lets the next one ask.
            del self._asking[name]
            asking.answered.set()
        return found

    async def _ask(self, name: str) -> tuple[ChefCaller, ...]:
        quoted = quote(name, safe="")
        found = await self._get(f"{self._prefix}/principals/{quoted}")
        if found is None:
            return ()
        entries = found.get("principals", [found])
        callers = []
        for entry in entries if isinstance(entries, list) else []:
            if not isinstance(entry, dict):
                continue
            kind, pem = entry.get("type"), entry.get("public_key")
            if kind not in ("user", "client") or not isinstance(pem, str) or entry.get("org_member") is False:
                continue
            try:
                key = load_public_key(pem)
            except InvalidRequest as error:
                _log.warning("chef_server.bad_key", name=name, error=error.message)
                continue
            role = await self._role(kind, name, quoted)
            principal = Principal(organization=self._organization, role=role, name=name)
            callers.append(ChefCaller(principal=principal, key=key))
        return tuple(callers)

    async def _role(self, kind: str, name: str, quoted: str) -> Role:
        if self._prefix:
            is_admin = await self._is_in_admins(f"{kind}s", name)
        else:
            entry = await self._get(f"/{kind}s/{quoted}") or {}
            is_admin = entry.get("admin") is True
        if is_admin:
            return Role.ADMIN
        return Role.VIEWER if kind == "user" else Role.NODE

    async def _is_in_admins(self, kinds: str, name: str) -> bool:
        """Whether the group ``admins`` has this member, itself or by a group in it."""
        seen: set[str] = set()
        waiting = ["admins"]
        while waiting and len(seen) < _MOST_GROUPS:
            group = waiting.pop()
            # Global groups (``::name``) cannot be asked for by this path.
            if group in seen or not _NAME.fullmatch(group) or group.startswith(":"):
                continue
            seen.add(group)
            found = await self._get(f"{self._prefix}/groups/{quote(group, safe='')}") or {}
            if name in _names(found, kinds):
                return True
            waiting += _names(found, "groups")
        return False

    async def _get(self, path: str) -> Mapping[str, Any] | None:
        """What the server says; None when there is no such thing."""
        headers = sign_request(
            method="GET",
            path=path,
            body=b"",
            user=self._settings.client_name,
            now=self._clock.now(),
            key=self._key,
            server_api_version="1",
        )
        try:
            with trio.fail_after(self._settings.timeout):
                status, text = await self._read(path, headers)
        except (httpx2.RequestError, trio.TooSlowError) as error:
            _log.warning("chef_server.unreachable", error=repr(error))
            raise Unreachable("the Chef server cannot be reached") from error
        if status == 404:
            return None
        try:
            value = json.loads(text) if status == 200 and len(text) <= _LARGEST_ANSWER else None
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            # goiardi answers paths that it does not know with an empty 200.
            _log.error("chef_server.no_answer", path=path, status=status, client=self._settings.client_name)
            raise Unreachable(f"the Chef server did not answer ({status})")
        return value

    async def _read(self, path: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """Status and body of an answer; no more is read of a body than tells that it is too large."""
        body = bytearray()
        async with self._http.stream(
            "GET",
            self._base,
            headers={**headers, "Accept": "application/json", "X-Chef-Version": "11.1.7"},
            extensions={"target": path.encode("ascii")},
        ) as answer:
            async with aclosing(answer.aiter_bytes()) as pieces:
                async for piece in pieces:
                    body += piece
                    if len(body) > _LARGEST_ANSWER:
                        break
            return answer.status_code, bytes(body)

    def _recall(self, name: str) -> tuple[ChefCaller, ...] | None:
        found = self._remembered.get(name)
        if found is None or self._clock.now() > found.until:
            return None
        self._remembered.move_to_end(name)
        return found.callers

    def _remember(self, name: str, callers: tuple[ChefCaller, ...]) -> None:
        lasts = self._settings.cache if callers else self._settings.negative_cache
        self._remembered[name] = _Remembered(until=self._clock.now() + lasts, callers=callers)
        while len(self._remembered) > _REMEMBERED:
            self._remembered.popitem(last=False)


def _names(found: Mapping[str, Any], member: str) -> list[str]:
    names = found.get(member)
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


class _PassedBody(httpx2.AsyncByteStream):
    """A request's body on its way through."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive

    async def __aiter__(self) -> AsyncIterator[bytes]:
        more = True
        while more:
            message = await self._receive()
            more = message.get("more_body", False)
            if piece := message.get("body", b""):
                yield piece


@asynccontextmanager
async def open_chef_server(settings: ChefSection, *, organization: str, clock: Clock) -> AsyncIterator[ChefServer]:
    """A Chef server to ask, for the block; nothing is asked before it is needed.

    Args:
        organization: what its one organization is called here.

    Raises:
        FileUnusable, InvalidRequest: the key file cannot be used.
        OSError: the CA file cannot be read.
    """
    if not settings.key_file:
        raise InvalidRequest("chef.key_file is not set", field="key_file")
    key = load_private_key(read_secret(settings.key_file).decode("utf-8", "replace"))
    verify: ssl.SSLContext | bool = ssl.create_default_context(cafile=settings.ca_file or None)
    limits = httpx2.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_QUESTIONS)
    timeout = httpx2.Timeout(settings.timeout, read=300.0)
    async with httpx2.AsyncClient(
        verify=verify, limits=limits, timeout=timeout, follow_redirects=False, trust_env=False
    ) as http:
        yield ChefServer(http, settings=settings, key=key, organization=organization, clock=clock)


class Callers:
    """Those who are stored here, and for everybody else those of the Chef server."""

    def __init__(self, stored: ChefCallers, chef: ChefServer) -> None:
        self._stored = stored
        self._chef = chef

    async def find(self, organization: str, name: str) -> Sequence[ChefCaller]:
        """See ``chef.auth.ChefCallers``."""
        stored = await self._stored.find(organization, name)
        return stored or await self._chef.find(organization, name)
