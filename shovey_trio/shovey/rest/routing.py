"""From a request to a route: paths, organizations, and what is answered where there is none.

Every route exists in two forms: ``/shovey/…`` for the controller's own organization, and
``/organizations/ORG/shovey/…``. Starlette matches paths in which slashes inside of names are still
escaped, so that one is part of a name.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, quote, unquote

from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.routing import Route as PathRoute

from shovey_trio.core.chef.signing import ChefSignature, signed_content
from shovey_trio.core.jobs.model import Principal
from shovey_trio.core.trust.authz import Action
from shovey_trio.http.asgi import Scope
from shovey_trio.http.messages import HttpRefused

_HOST: Final = re.compile(r"[A-Za-z0-9._-]+(?::\d{1,5})?|\[[0-9A-Fa-f:]+\](?::\d{1,5})?")
#: What is said of everything that is no push job, where there is no Chef server to pass it on to.
CHEFS_OWN: Final = "this is a Chef server's; with [chef] server_url set, the controller passes such requests on to it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A request's path, taken apart.

    Attributes:
        prefix: ``""`` or ``/organizations/ORG``, to be put before the paths of answers.
        segments: decoded; a slash at the end makes an empty last one.
    """

    organization: str
    prefix: str
    segments: tuple[str, ...]

    @property
    def area(self) -> str:
        return self.segments[0] if self.segments else ""

    @property
    def path(self) -> str:
        """Without the organization, in one spelling: nothing is escaped but slashes inside of names."""
        return "/" + "/".join([segment.replace("%", "%25").replace("/", "%2F") for segment in self.segments])


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request that may be handled: who calls, and with what."""

    principal: Principal
    target: Target
    request: Request
    signature: ChefSignature
    body: bytes

    @property
    def params(self) -> Mapping[str, str]:
        """The values in the path."""
        return self.request.path_params

    @property
    def query(self) -> dict[str, str]:
        """Decoded; the first of what is repeated, and empty values are values."""
        pairs = parse_qsl(self.request.scope["query_string"].decode("ascii"), keep_blank_values=True)
        return dict(reversed(pairs))

    @property
    def request_id(self) -> str:
        """The same for a request that is repeated, by its sender or by somebody who has recorded it."""
        path = self.request.scope["raw_path"].decode("ascii")
        content = signed_content(self.signature, method=self.request.method, path=path)
        return "chef:" + hashlib.sha256(content).hexdigest()

    def url(self, path: str) -> str:
        """A URL of ours, absolute if the client said how it reached us; ``path`` begins with a slash."""
        host = self.request.headers.get("host", "")
        base = f"{self.request.scope['scheme']}://{host}" if _HOST.fullmatch(host) else ""
        return f"{base}{self.target.prefix}{path}"


Handle = Callable[[Call], Awaitable[Response]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RestRoute:
    """One thing that can be asked, and by whom.

    Attributes:
        template: such as ``/shovey/jobs/{job}``. GET answers HEAD as well.
        action: what it does, in the table of who may do what; there is no default, so that nobody can forget to decide.
    """

    method: str
    template: str
    action: Action
    handle: Handle
    summary: str


def read_target(path: str, own_organization: str, *, known_as: str = "") -> Target:
    """Takes a path apart; slashes in a row count as one.

    Args:
        known_as: what paths may call the own organization besides: its name at the Chef server.
    """
    segments = (re.sub(r"/{2,}", "/", path) if "//" in path else path).split("/")[1:]
    if segments[:2] == ["organizations", "shovey"] and segments[2:3] in (["jobs"], ["stream"]):
        # No organization: what go-chef makes of an endpoint without a slash at its end (``rest.senders``).
        segments = segments[1:]
    if len(segments) > 2 and segments[0] == "organizations" and segments[1]:
        named = unquote(segments[1])
        return Target(
            organization=own_organization if named == known_as else named,
            prefix=f"/organizations/{segments[1]}",
            segments=tuple(unquote(segment) for segment in segments[2:]),
        )
    return Target(organization=own_organization, prefix="", segments=tuple(unquote(segment) for segment in segments))


class Router:
    """The table of routes; Starlette matches the paths."""

    def __init__(self, routes: Iterable[RestRoute]) -> None:
        self.routes: Sequence[RestRoute] = tuple(routes)
        self.areas = frozenset(route.template.split("/")[1] for route in self.routes)
        # By the first two words, none of which is a name: to try all of them takes as long as the rest of a request.
        self._begun: dict[tuple[str, ...], list[tuple[RestRoute, PathRoute]]] = defaultdict(list)
        # What is spelled out goes before what a name may be: /shovey/jobs/cancel is no job.
        for route in sorted(self.routes, key=lambda route: [word[:1] == "{" for word in route.template.split("/")]):
            template = re.sub(r"{(\w+)}", r"{\1:segment}", route.template)
            path = PathRoute(template, route.handle, methods=[route.method])
            self._begun[_begin(route.template)].append((route, path))

    def find(self, scope: Scope) -> RestRoute:
        """The route of a request whose ``scope["path"]`` is ``Target.path``; the values in it are ``path_params`` then.

        Raises:
            HttpRefused: there is none; status and text are those that Shovey's clients know.
        """
        allowed: set[str] = set()
        for route, path in self._begun.get(_begin(scope["path"]), ()):
            match, found = path.matches(scope)
            if match is Match.FULL:
                scope.update(found)
                return route
            if match is Match.PARTIAL:
                allowed |= path.methods or set()
        raise _missing(scope["method"], scope["path"], allowed - {"HEAD"})


def _begin(path: str) -> tuple[str, ...]:
    return tuple(path.split("/", 3)[1:3])


class _Segment(Convertor[str]):
    """A segment of a path, decoded; it may be empty, as of a path with a slash at its end."""

    regex = "[^/]*"

    def convert(self, value: str) -> str:
        return unquote(value)

    def to_string(self, value: str) -> str:
        return quote(value, safe="")


register_url_convertor("segment", _Segment())


def _missing(method: str, path: str, allowed: set[str]) -> HttpRefused:
    area, *_ = segments = tuple(unquote(segment) for segment in path.split("/")[1:])
    match area, segments:
        case "shovey", (_, "jobs" | "stream", *_) if method not in {"GET", "HEAD", "PUT", "POST"}:
            return _not_allowed("Unrecognized method", allowed or {"GET", "PUT"})
        case "shovey", _ if allowed and (method not in {"PUT", "POST"} or segments[1] == "stream"):
            return _not_allowed("Unrecognized method", allowed)
        case "shovey", (_, "jobs" | "stream" | "key" | "output" | "", *_) | (_,):
            return HttpRefused(400, "Bad request")
        case "shovey", _:
            return HttpRefused(400, "Unrecognized operation")
        case "status", _ if allowed or method not in {"GET", "HEAD"}:
            return _not_allowed("Method not allowed", allowed or {"GET"})
        case "status", (_, "all", _):
            return HttpRefused(400, "Invalid object to get status for")
        case "status", _:
            return HttpRefused(400, "Bad request")
        case _ if allowed:
            return _not_allowed(f"Method not allowed: {CHEFS_OWN}", allowed)
        case _:
            return HttpRefused(404, CHEFS_OWN)


def _not_allowed(text: str, allowed: set[str]) -> HttpRefused:
    methods = sorted(allowed | ({"HEAD"} if "GET" in allowed else set()))
    return HttpRefused(405, text, headers={"Allow": ", ".join(methods)})
