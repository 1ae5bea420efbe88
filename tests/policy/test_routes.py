"""The servers' own lists of routes against the table of this folder: nothing is served that nobody decided about."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from shovey_trio.config.server import ServerSettings, load_server_settings
from shovey_trio.controller import composition as controller
from shovey_trio.controller import grpc_door
from shovey_trio.core.jobs.model import Role
from shovey_trio.core.trust.authz import METHODS, PERMITTED, Action
from shovey_trio.demo.fleet import run_program
from shovey_trio.identity.layout import DataDirectory
from shovey_trio.rpc.bridge import Listener, Method, serve_unary
from shovey_trio.rpc.services.node_service import NodeService
from shovey_trio.shovey.rest import listener as rest_listener
from shovey_trio.shovey.rest.application import RestApplication
from shovey_trio.shovey.rest.routing import RestRoute
from shovey_trio.v1 import node_service_pb2

from .expected import ENROLL_LISTENER, GRPC, OPEN, PROOF, REST, REST_OPEN

HARD_LIMIT = 60.0


@pytest.fixture
async def settings(tmp_path: Path) -> ServerSettings:
    root = tmp_path / "controller"
    listen = [word for name in ("control", "enroll") for word in (f"--{name}-listen", "127.0.0.1:0")]
    with trio.fail_after(HARD_LIMIT):
        await run_program("shovey-trio", "init", "--data-dir", str(root), *listen)
    return load_server_settings(
        file=DataDirectory(root).configuration,
        environ={},
        overrides=[("rest.enabled", True), ("rest.listen", "127.0.0.1:0"), ("serf.enabled", False)],
    )


async def test_every_route_that_is_served_has_a_line_and_every_line_a_route(
    settings: ServerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: dict[str, set[str]] = {}
    routed: list[RestRoute] = []
    documents: set[str] = set()
    open_server, application = grpc_door.open_server, RestApplication.__init__

    @asynccontextmanager
    async def open_server_and_tell(listeners: Sequence[Listener], **options: Any) -> AsyncIterator[Any]:
        for listener in listeners:
            served[listener.name] = {route.method.path.removeprefix("/") for route in listener.serves}
        async with open_server(listeners, **options) as server:
            yield server

    def tell_application(self: RestApplication, routes: Sequence[RestRoute], *arguments: Any, **options: Any) -> None:
        routed.extend(routes)
        documents.update(options["documents"] or {})
        application(self, routes, *arguments, **options)

    monkeypatch.setattr(grpc_door, "open_server", open_server_and_tell)
    monkeypatch.setattr(rest_listener.RestApplication, "__init__", tell_application)
    with trio.fail_after(HARD_LIMIT):
        async with controller.open_controller(settings):
            pass
    assert served["enroll"] == ENROLL_LISTENER
    assert served["control"] == {path for path, who in GRPC.items() if who != PROOF}
    assert set(served) == {"control", "enroll"}
    assert {
        f"{route.method} {route.template}": {role.value for role in PERMITTED[route.action]} for route in routed
    } == {route: set(who.split()) for route, who in REST.items()}
    assert documents == REST_OPEN


def test_the_policy_is_the_table_of_this_folder() -> None:
    assert {path.removeprefix("/") for path in METHODS} == set(GRPC)
    for path, who in GRPC.items():
        action = METHODS[f"/{path}"]
        if who in (PROOF, OPEN):
            assert action is Action.ANYBODY, path
        else:
            assert {role.value for role in PERMITTED[action]} == set(who.split()), path


async def test_a_controller_with_a_method_that_nobody_decided_about_does_not_start(
    settings: ServerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten = Method(
        path="/shovey_trio.v1.NodeService/RebootNode",
        request_type=node_service_pb2.GetNodeRequest,
        response_type=node_service_pb2.GetNodeResponse,
    )
    serves = NodeService.serves
    monkeypatch.setattr(NodeService, "serves", lambda self: (*serves(self), serve_unary(forgotten, self._get)))
    with trio.fail_after(HARD_LIMIT), pytest.raises(BaseException) as caught:  # noqa: PT011 - looked into below
        async with controller.open_controller(settings):
            pytest.fail("it has started")
    assert caught.group_contains(RuntimeError, match="no policy for /shovey_trio.v1.NodeService/RebootNode")


def test_a_route_of_the_shim_cannot_be_made_without_saying_who_may() -> None:
    async def handle(*_: object) -> None:
        await trio.lowlevel.checkpoint()

    with pytest.raises(TypeError, match="action"):
        RestRoute(method="GET", template="/forgotten", handle=handle, summary="")  # type: ignore[call-arg]  # the point


def test_every_role_has_lines_and_no_line_has_another_word() -> None:
    words = {word for who in (*GRPC.values(), *REST.values()) for word in who.split()}
    assert words == {role.value for role in Role} | {PROOF, OPEN}
