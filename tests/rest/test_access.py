"""Who may do what through the shim: every route against every kind of caller, and requests nobody believes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lab.chef_client import ChefClient, public_pem
from shovey_trio.chef import callers as chef_callers
from shovey_trio.config.server import ServerSettings
from shovey_trio.core.chef.principals import ChefPrincipalKind
from shovey_trio.core.chef.signing import SigningVersion
from shovey_trio.core.jobs.model import Principal, Role
from shovey_trio.shovey.rest.listener import shim_routes

from .conftest import Shim, key_of, make_principal

CALLERS = {"admin": Role.ADMIN, "ops": Role.OPERATOR, "viewer": Role.VIEWER, "web-1": Role.NODE}
PATHS = {
    "GET /shovey/jobs": "/shovey/jobs",
    "POST /shovey/jobs": "/shovey/jobs",
    "PUT /shovey/jobs/cancel": "/shovey/jobs/cancel",
    "GET /shovey/jobs/{job}": "/shovey/jobs/x",
    "GET /shovey/jobs/{job}/{node}": "/shovey/jobs/x/web-1",
    "PUT /shovey/jobs/{job}/{node}": "/shovey/jobs/x/web-1",
    "GET /shovey/stream/{job}/{node}": "/shovey/stream/x/web-1",
    "PUT /shovey/stream/{job}/{node}": "/shovey/stream/x/web-1",
    "GET /shovey/output/{job}/{node}": "/shovey/output/x/web-1",
    "GET /shovey/key": "/shovey/key",
    "POST /shovey/key/reset": "/shovey/key/reset",
    "GET /status/all/nodes": "/status/all/nodes",
    "GET /status/node/{node}/latest": "/status/node/web-1/latest",
    "GET /status/node/{node}/all": "/status/node/web-1/all",
    "GET /nodes": "/nodes",
    "GET /search/node": "/search/node",
}
# Written out once more, so that a change of the table in the code is noticed here.
OPERATORS = {Role.ADMIN, Role.OPERATOR}
ALLOWED = dict.fromkeys(PATHS, OPERATORS) | {
    "PUT /shovey/jobs/{job}/{node}": {Role.NODE},
    "PUT /shovey/stream/{job}/{node}": {Role.NODE},
    "GET /shovey/key": set(Role),
    "POST /shovey/key/reset": {Role.ADMIN},
}


def test_every_route_is_in_this_test() -> None:
    routes = shim_routes(ServerSettings(), jobs=_nothing(), nodes=_nothing(), reports=None)
    assert {f"{route.method} {route.template}" for route in routes} == set(PATHS)


@pytest.mark.parametrize("route", PATHS)
async def test_route_is_open_to_exactly_these_roles(shim: Shim, route: str) -> None:
    method, path = route.split(maxsplit=1)[0], PATHS[route]
    allowed = set()
    for name, role in CALLERS.items():
        for prefix in ("", "/organizations/default"):
            answer = await shim.client(name).request(method, prefix + path, {} if method != "GET" else None)
            if answer.status != 403:
                allowed.add(role)
            elif path.startswith("/status"):
                assert answer.error == "You must be an admin to do that"
            else:
                assert answer.error == "you cannot perform this action"
    assert allowed == ALLOWED[route]


@pytest.mark.parametrize("path", ["/shovey/jobs/x/web-2", "/shovey/stream/x/web-2"])
async def test_node_may_not_report_for_another(shim: Shim, path: str) -> None:
    answer = await shim.client("web-1").put(path, {"status": "running"})
    assert (answer.status, answer.error) == (403, "node/web-1 may not report for web-2")
    assert shim.legacy.runs == shim.legacy.streams == []


@pytest.mark.parametrize("name", ["n2", "acme:n2"])
@pytest.mark.parametrize("prefix", ["", "/organizations", "/organizations/acme"])
async def test_a_schob_of_any_organization_reports_by_any_endpoint_and_either_name(
    shim: Shim, monkeypatch: pytest.MonkeyPatch, prefix: str, name: str
) -> None:
    """Without an organization in the path, and as go-chef cuts it when the endpoint has no final slash."""
    monkeypatch.setattr(chef_callers, "_LOOK_AGAIN", 0.0)
    node = make_principal(ChefPrincipalKind.NODE, "n2", Role.NODE, organization="acme")
    namesake = replace(make_principal(ChefPrincipalKind.NODE, "n2", Role.NODE), public_key=public_pem(key_of("web-1")))
    await shim.store.write_chef_principals([node, namesake])
    shim.legacy.organizations["j", name] = "acme"
    client = ChefClient(port=shim.server.port, user=name, key=key_of("n2"), version=SigningVersion.V1_0)
    told = await client.put(f"{prefix}/shovey/jobs/j/{name}", {"status": "running"})
    assert (told.status, told.json) == (200, {"id": "j", "node": name, "response": "ok"})
    assert (await client.put(f"{prefix}/shovey/stream/j/{name}", {"seq": 0})).status == 200
    sender = Principal(organization="acme", role=Role.NODE, name="n2")
    assert shim.legacy.runs == [(sender, "j", "n2", {"status": "running"})]
    assert shim.legacy.streams == [(sender, "j", "n2", {"seq": 0})]
    # Whose job it is decides whose key is asked for, and nothing else.
    stranger = replace(client, key=key_of("web-1"))
    assert (await stranger.put(f"{prefix}/shovey/jobs/j/{name}", {"status": "failed"})).status == 401
    assert (await client.get("/shovey/jobs/j/n2")).status == 401


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", list(PATHS.values()))
async def test_nobody_gets_anything_without_a_signature(shim: Shim, path: str, method: str) -> None:
    answer = await ChefClient(port=shim.server.port, user="admin", key=None).request(method, path)
    assert answer.status == 400
    assert "X-Ops-Sign" in answer.headers["www-authenticate"]


@pytest.mark.parametrize("version", SigningVersion)
async def test_every_version_of_the_protocol_is_accepted_and_a_wrong_key_is_not(
    shim: Shim, version: SigningVersion
) -> None:
    assert (await shim.client("admin", version=version).get("/shovey/jobs")).status == 200
    answer = await shim.client("admin", version=version, key=key_of("stranger")).get("/shovey/jobs")
    assert (answer.status, answer.json["error"][0] != "") == (401, True)
    assert "X-Ops-Sign" in answer.headers["www-authenticate"]


async def test_unknown_user_is_401_with_the_text_that_is_known(shim: Shim) -> None:
    answer = await shim.client("ghost").get("/shovey/jobs")
    text = "Failed to authenticate as 'ghost'. Ensure that your node_name and client key are correct."
    assert (answer.status, answer.error) == (401, text)


async def test_organization_that_is_not_ours_knows_nobody(shim: Shim) -> None:
    assert (await shim.admin.get("/organizations/other/shovey/jobs")).status == 401


async def test_body_that_was_changed_on_the_way_is_401(shim: Shim) -> None:
    headers = shim.admin.sign("POST", "/shovey/jobs", b"{}")
    answer = await shim.admin.send("POST", "/shovey/jobs", b"[]", headers)
    assert (answer.status, answer.error) == (401, "Content hash did not match hash of request body")


@pytest.mark.parametrize("offset", [-1_000, 1_000])
async def test_clock_that_is_far_off_is_401(shim: Shim, offset: float) -> None:
    import time

    answer = await shim.client("admin", now=lambda: time.time() + offset).get("/shovey/jobs")
    assert (answer.status, answer.error) == (401, "Authentication failed. Please check your system's clock.")


async def test_signature_of_one_path_does_not_open_another(shim: Shim) -> None:
    headers = shim.client("web-1").sign("GET", "/shovey/key", b"")
    assert (await shim.admin.send("GET", "/shovey/jobs", b"", headers)).status == 401


async def test_path_is_verified_as_it_is_on_the_wire(shim: Shim) -> None:
    assert (await shim.admin.get("/status/node/web%2D1/latest")).json["node_name"] == "web-1"


@pytest.mark.parametrize(
    ("request_line", "status", "text"),
    [
        ("GET /shovey", 400, "Bad request"),
        ("GET /shovey/", 400, "Bad request"),
        ("GET /shovey/zork", 400, "Unrecognized operation"),
        ("GET /shovey/jobs/a/b/c", 400, "Bad request"),
        ("GET /shovey/jobs/", 404, "shovey job  not found"),
        ("PUT /shovey/jobs", 400, "Bad request"),
        ("PUT /shovey/jobs/x", 400, "Bad request"),
        ("DELETE /shovey/jobs/x", 405, "Unrecognized method"),
        ("PATCH /shovey/stream/x/y", 405, "Unrecognized method"),
        ("OPTIONS /shovey/jobs/x", 405, "Unrecognized method"),
        ("GET /status/", 400, "Bad request"),
        ("GET /status/all", 400, "Bad request"),
        ("GET /status/all/foo", 400, "Invalid object to get status for"),
        ("GET /status/all/nodes/x", 400, "Bad request"),
        ("GET /status/node/web-1", 400, "Bad request"),
        ("GET /status/node/web-1/zork", 400, "Bad request"),
        ("POST /status/all/nodes", 405, "Method not allowed"),
    ],
)
async def test_what_is_no_route_is_answered_as_recorded(shim: Shim, request_line: str, status: int, text: str) -> None:
    method, path = request_line.split()
    answer = await shim.admin.request(method, path, {} if method in {"POST", "PUT"} else None)
    assert (answer.status, answer.error) == (status, text)
    assert (status == 405) == ("allow" in answer.headers)


async def test_what_is_not_ours_is_404_for_everybody(shim: Shim) -> None:
    assert (await ChefClient(port=shim.server.port, user="x", key=None).get("/cookbooks")).status == 404


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        # knife status and knife search node ask for a part of the attributes; knife node show and knife search client.
        ("POST /search/node?q=*:*&start=0&rows=1000", 405),
        ("GET /search/client?q=*:*", 404),
        ("GET /search", 404),
        ("GET /nodes/web-1", 404),
        ("POST /nodes", 405),
        ("GET /organizations/default/cookbooks", 404),
    ],
)
async def test_what_a_chef_server_would_serve_says_how(shim: Shim, request_line: str, status: int) -> None:
    method, path = request_line.split()
    answer = await shim.admin.request(method, path, {} if method == "POST" else None)
    assert answer.status == status
    assert answer.error.endswith("with [chef] server_url set, the controller passes such requests on to it")


async def test_key_that_was_taken_away_stops_working(shim: Shim, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await shim.client("ops").get("/shovey/jobs")).status == 200
    await shim.store.remove_chef_principal("default", ChefPrincipalKind.USER, "ops")
    monkeypatch.setattr(chef_callers, "_FRESH", 0.0)
    assert (await shim.client("ops").get("/shovey/jobs")).status == 401


def _nothing() -> Any:
    """For handlers that are not called."""
    return None
