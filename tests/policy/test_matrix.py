"""Every route by every kind of caller, asked of a real daemon. ``expected`` says what must come out."""

from __future__ import annotations

from typing import Any, Final

import pytest
from grpc_health.v1 import health_pb2

from lab.limits import within
from shovey_trio.core.errors import Code
from shovey_trio.rpc import methods
from shovey_trio.rpc.bridge import Method, RpcError, open_channel
from shovey_trio.v1 import node_service_pb2

from .conftest import NODE, ORGANIZATION, OTHER, OTHER_NODE, ROLES, STRANGERS, Site, call, outcome
from .expected import GRPC, OPEN, PROOF, REST, REST_OPEN

pytestmark = pytest.mark.slow

_METHODS: Final = {method.path.removeprefix("/"): method for method in methods.ALL_METHODS}
_GUARDED: Final = sorted(path for path, who in GRPC.items() if who not in (PROOF, OPEN))
_HEALTH: Final = Method(
    path="/grpc.health.v1.Health/Check",
    request_type=health_pb2.HealthCheckRequest,
    response_type=health_pb2.HealthCheckResponse,
)
# What a caller who was let through is not told.
_SHUT: Final = frozenset({Code.UNAUTHENTICATED, Code.PERMISSION_DENIED, Code.UNIMPLEMENTED, Code.INTERNAL})
# Where grpc makes no connection without a certificate that it can verify, there is nobody to be told more.
_NO_CONNECTION: Final = frozenset({"none", "other-authority"})


def _said(code: Code, who: str) -> str:
    if code is Code.PERMISSION_DENIED:
        return "denied"
    if code is Code.UNAUTHENTICATED or (code is Code.UNAVAILABLE and who in _NO_CONNECTION):
        return "unauthenticated"
    return f"failed with {code}" if code in _SHUT else "allowed"


# --- gRPC -----------------------------------------------------------------------------------------------------


@within(60)
@pytest.mark.parametrize("path", _GUARDED, ids=lambda path: path.rpartition("/")[2])
async def test_a_method_lets_exactly_those_through_that_the_table_names(site: Site, path: str) -> None:
    said = {}
    for who in (*ROLES, *STRANGERS):
        async with open_channel(site.fleet.listeners["control"], site.tls[who]) as channel:
            said[who] = _said(await call(channel, _METHODS[path]), who)
    allowed = GRPC[path].split()
    expected = {who: "allowed" if role in allowed else "denied" for who, role in ROLES.items()}
    assert said == expected | dict.fromkeys(STRANGERS, "unauthenticated")


@within(60)
@pytest.mark.parametrize("path", _GUARDED, ids=lambda path: path.rpartition("/")[2])
async def test_the_listener_for_enrolment_serves_no_other_method(site: Site, path: str) -> None:
    async with open_channel(site.fleet.listeners["enroll"], site.tls["admin"]) as channel:
        assert await call(channel, _METHODS[path]) is Code.UNIMPLEMENTED


@within(60)
@pytest.mark.parametrize("who", ["none", "admin", NODE, "revoked-node", "other-organization"])
async def test_enrolment_and_renewal_ask_everybody_for_a_proof(site: Site, who: str) -> None:
    async with open_channel(site.fleet.listeners["enroll"], site.tls[who]) as channel:
        assert await call(channel, methods.ENROLL) in {Code.PERMISSION_DENIED, Code.INVALID_ARGUMENT}
        assert await call(channel, methods.RENEW) in {Code.UNAUTHENTICATED, Code.INVALID_ARGUMENT}


@within(60)
async def test_the_other_listener_has_neither_enrolment_nor_renewal(site: Site) -> None:
    async with open_channel(site.fleet.listeners["control"], site.tls["admin"]) as channel:
        assert await call(channel, methods.ENROLL) is Code.UNIMPLEMENTED
        assert await call(channel, methods.RENEW) is Code.UNIMPLEMENTED


@within(60)
@pytest.mark.parametrize(("listener", "who"), [("control", "viewer"), ("control", NODE), ("enroll", "none")])
async def test_health_is_served_to_everybody_who_gets_a_connection(site: Site, listener: str, who: str) -> None:
    async with open_channel(site.fleet.listeners[listener], site.tls[who]) as channel:
        answer = await channel.unary(_HEALTH, health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


@within(60)
async def test_the_answer_to_a_refused_call_names_caller_and_call(site: Site) -> None:
    async with open_channel(site.fleet.listeners["control"], site.tls["viewer"]) as channel:
        with pytest.raises(RpcError) as caught:
            await channel.unary(methods.REMOVE_NODE, node_service_pb2.RemoveNodeRequest(name=NODE))
    assert caught.value.reason == "PERMISSION_DENIED"
    assert "user/the-viewer (viewer) may not call RemoveNode" in caught.value.message


# --- REST -----------------------------------------------------------------------------------------------------


def _body(route: str) -> Any:
    """Something that is read, so that an answer is about the caller."""
    return {} if route.split(maxsplit=1)[0] in {"POST", "PUT"} else None


def _ask(route: str, site: Site) -> tuple[str, str]:
    method, template = route.split()
    return method, template.replace("{job}", site.job).replace("{node}", NODE)


@within(60)
@pytest.mark.parametrize("route", REST)
@pytest.mark.parametrize("prefix", ["", f"/organizations/{ORGANIZATION}"])
async def test_a_route_lets_exactly_those_through_that_the_table_names(site: Site, route: str, prefix: str) -> None:
    method, path = _ask(route, site)
    said = {}
    for who, client in site.chef.items():
        said[who] = outcome(await client.request(method, prefix + path, _body(route)))
    allowed = REST[route].split()
    expected = {who: "allowed" if role in allowed else "denied" for who, role in ROLES.items()}
    if "{node}" in route and allowed == ["node"]:
        expected[OTHER_NODE] = "denied"  # it may call it, and not for another
    assert said == expected | dict.fromkeys(("none", "stranger", "revoked"), "unauthenticated")


@within(60)
@pytest.mark.parametrize("route", REST)
async def test_no_key_of_this_organization_opens_another_ones_paths(site: Site, route: str) -> None:
    method, path = _ask(route, site)
    spellings = ("Default", "default%00", "..", "%2e%2e", "default%2f")
    asked = [(who, OTHER) for who in site.chef] + [("admin", organization) for organization in spellings]
    for who, organization in asked:
        answer = await site.chef[who].request(method, f"/organizations/{organization}{path}", _body(route))
        assert outcome(answer) == "unauthenticated", (who, organization)


@within(60)
@pytest.mark.parametrize("path", sorted(REST_OPEN))
async def test_what_needs_no_signature_tells_nothing_of_anybody(site: Site, path: str) -> None:
    answer = await site.chef["none"].get(path)
    assert answer.status == 200
    for told in (site.job, NODE, OTHER_NODE, "BEGIN"):
        assert told.encode() not in answer.body
