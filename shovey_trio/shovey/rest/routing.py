"""From a request to a route: paths, organizations, and what is answered where there is none.

Every route exists in two forms: ``/shovey/…`` for the controller's own organization, and
``/organizations/ORG/shovey/…``. A path is cut into segments before they are decoded, so that an escaped slash is part
of a name.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote

from shovey_trio.core.chef.signing import ChefSignature
from shovey_trio.core.jobs.model import Principal, Role
from shovey_trio.http.messages import HttpRefused, Reply, Request

ADMINS: Final = frozenset({Role.ADMIN})
OPERATORS: Final = frozenset({Role.ADMIN, Role.OPERATOR})
NODES: Final = frozenset({Role.NODE})
EVERYBODY: Final = frozenset(Role)

_HOST: Final = re.compile(r"[A-Za-z0-9._-]+(?::\d{1,5})?|\[[0-9A-Fa-f:]+\](?::\d{1,5})?")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request that may be handled: who calls, and with what."""

    principal: Principal
    target: Target
    params: Mapping[str, str]
    request: Request
    signature: ChefSignature
    body: bytes

    def url(self, path: str) -> str:
        """A URL of ours, absolute if the client said how it reached us; ``path`` begins with a slash."""
        host = self.request.headers.get("host", "")
        base = f"{self.request.scheme}://{host}" if _HOST.fullmatch(host) else ""
        return f"{base}{self.target.prefix}{path}"


Handle = Callable[[Call, Reply], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One thing that can be asked, and by whom.

    Attributes:
        template: such as ``/shovey/jobs/{job}``. GET answers HEAD as well.
        roles: who may; there is no default, so that nobody can forget to decide.
    """

    method: str
    template: str
    roles: frozenset[Role]
    handle: Handle
    summary: str


def read_target(path: str, own_organization: str, *, known_as: str = "") -> Target:
    """Takes a path apart; slashes in a row count as one.

    Args:
        known_as: what paths may call the own organization besides: its name at the Chef server.
    """
    segments = (re.sub(r"/{2,}", "/", path) if "//" in path else path).split("/")[1:]
    if len(segments) > 2 and segments[0] == "organizations" and segments[1]:
        named = unquote(segments[1])
        return Target(
            organization=own_organization if named == known_as else named,
            prefix=f"/organizations/{segments[1]}",
            segments=tuple(unquote(segment) for segment in segments[2:]),
        )
    return Target(organization=own_organization, prefix="", segments=tuple(unquote(segment) for segment in segments))


class Router:
    """The table of routes."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes: Sequence[Route] = tuple(routes)
        self._by_shape: list[tuple[tuple[str, ...], Route]] = [
            (tuple(route.template.split("/")[1:]), route) for route in self.routes
        ]
        # What is spelled out goes before what a name may be: /shovey/jobs/cancel is no job.
        self._by_shape.sort(key=lambda entry: [segment.startswith("{") for segment in entry[0]])
        self.areas = frozenset(shape[0] for shape, _ in self._by_shape)
        # Most of the table has another form than a request's path: this is what is left of it.
        self._by_form: dict[tuple[int, str], list[tuple[tuple[str, ...], Route]]] = {}
        for shape, route in self._by_shape:
            self._by_form.setdefault((len(shape), shape[0]), []).append((shape, route))

    def find(self, method: str, target: Target) -> tuple[Route, dict[str, str]]:
        """The route of a request and the values in its path.

        Raises:
            HttpRefused: there is none; status and text are those that Shovey's clients know.
        """
        wanted = "GET" if method == "HEAD" else method
        allowed: set[str] = set()
        for shape, route in self._by_form.get((len(target.segments), target.area), ()):
            params = _match(shape, target.segments)
            if params is None:
                continue
            if route.method == wanted:
                return route, params
            allowed.add(route.method)
        raise _missing(method, target, allowed)


def _match(shape: Sequence[str], segments: Sequence[str]) -> dict[str, str] | None:
    if len(shape) != len(segments):
        return None
    params: dict[str, Any] = {}
    for wanted, found in zip(shape, segments, strict=True):
        if wanted.startswith("{"):
            params[wanted[1:-1]] = found
        elif wanted != found:
            return None
    return params


def _missing(method: str, target: Target, allowed: set[str]) -> HttpRefused:
    match target.area, target.segments:
        case "shovey", (_, "jobs" | "stream", *_) if method not in {"GET", "HEAD", "PUT", "POST"}:
            return _not_allowed("Unrecognized method", allowed or {"GET", "PUT"})
        case "shovey", _ if allowed and method not in {"PUT", "POST"}:
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
            return _not_allowed("Method not allowed", allowed)
        case _:
            return HttpRefused(404, "there is nothing here")


def _not_allowed(text: str, allowed: set[str]) -> HttpRefused:
    methods = sorted(allowed | ({"HEAD"} if "GET" in allowed else set()))
    return HttpRefused(405, text, headers={"Allow": ", ".join(methods)})
