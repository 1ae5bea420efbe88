"""Who may call what, asked of a real daemon: every RPC of the contract by every kind of caller."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pytest
import trio
from grpc_health.v1 import health_pb2
from shovey_agent.credentials import CredentialStore

from shovey_trio.core.authz import POLICY, PUBLIC
from shovey_trio.core.errors import Code
from shovey_trio.core.model import Role
from shovey_trio.identity.requests import make_private_key, make_request, private_key_pem
from shovey_trio.rpc import methods
from shovey_trio.rpc.bridge import Channel, ClientTls, Method, RpcError, open_channel
from shovey_trio.testing.fleet import Fleet
from shovey_trio.testing.limits import within
from shovey_trio.testing.shared_fleet import keep_fleet
from shovey_trio.v1 import admin_service_pb2, node_service_pb2

pytestmark = pytest.mark.slow

ROLE_OF: Final = {
    "admin": Role.ADMIN,
    "operator": Role.OPERATOR,
    "viewer": Role.VIEWER,
    "node": Role.NODE,
}
WIRE_ROLES: Final = {
    Role.ADMIN: admin_service_pb2.ROLE_ADMIN,
    Role.OPERATOR: admin_service_pb2.ROLE_OPERATOR,
    Role.VIEWER: admin_service_pb2.ROLE_VIEWER,
}
HEALTH: Final = Method(
    path="/grpc.health.v1.Health/Check",
    request_type=health_pb2.HealthCheckRequest,
    response_type=health_pb2.HealthCheckResponse,
)
# Known to the authority that signed their certificate, and to nobody else any more.
STRANGERS: Final = ("none", "removed-user", "removed-node")
CONTROL_METHODS: Final = [m for m in methods.ALL_METHODS if POLICY[m.path] is not PUBLIC]


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with keep_fleet(lambda _: [], serf=False) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def callers(fleet: Fleet) -> dict[str, ClientTls]:
    return trio.run(_make_callers, fleet)


async def _make_callers(fleet: Fleet) -> dict[str, ClientTls]:
    _, admin, _ = fleet.client_tls()
    made = {"none": ClientTls(ca=admin.ca)}
    with trio.fail_after(60):
        async with fleet.open_client() as client:
            for name, role in {**ROLE_OF, "removed-user": Role.ADMIN}.items():
                if role is Role.NODE:
                    continue
                key = make_private_key()
                answer = await client.create_user_certificate(
                    f"the-{name}", role=WIRE_ROLES[role], csr=make_request(key)
                )
                made[name] = ClientTls(
                    ca=admin.ca, certificate=answer.certificate_chain, private_key=private_key_pem(key)
                )
            await client.remove_user("the-removed-user")
            for name in ("node", "removed-node"):
                await fleet.enroll(name, fleet.directory / name)
                credentials = CredentialStore(fleet.directory / name).load()
                made[name] = ClientTls(
                    ca=credentials.ca_certificates,
                    certificate=credentials.certificate_chain,
                    private_key=credentials.private_key,
                )
            await client.remove_node("removed-node")
    return made


@within(30)
@pytest.mark.parametrize("who", [*ROLE_OF, *STRANGERS])
@pytest.mark.parametrize("method", CONTROL_METHODS, ids=lambda method: method.path.rpartition("/")[2])
async def test_a_call_is_let_through_exactly_if_the_policy_says_so(
    fleet: Fleet, callers: dict[str, ClientTls], method: Method[Any, Any], who: str
) -> None:
    async with open_channel(fleet.listeners["control"], callers[who]) as channel:
        code = await _call(channel, method)
    if who == "none":
        # Without a certificate there is no connection; where grpc lets one be, there is no identity.
        assert code in {Code.UNAVAILABLE, Code.UNAUTHENTICATED}
    elif who in STRANGERS:
        assert code is Code.UNAUTHENTICATED
    elif ROLE_OF[who] in POLICY[method.path]:
        assert code not in {Code.UNAUTHENTICATED, Code.PERMISSION_DENIED, Code.UNIMPLEMENTED, Code.INTERNAL}
    else:
        assert code is Code.PERMISSION_DENIED


@within(30)
@pytest.mark.parametrize("method", CONTROL_METHODS, ids=lambda method: method.path.rpartition("/")[2])
async def test_the_listener_for_enrolment_serves_nothing_but_enrolment(
    fleet: Fleet, callers: dict[str, ClientTls], method: Method[Any, Any]
) -> None:
    async with open_channel(fleet.listeners["enroll"], callers["admin"]) as channel:
        assert await _call(channel, method) is Code.UNIMPLEMENTED


@within(30)
async def test_enrolment_needs_no_certificate_and_a_proof_instead(fleet: Fleet, callers: dict[str, ClientTls]) -> None:
    async with open_channel(fleet.listeners["enroll"], callers["none"]) as channel:
        assert await _call(channel, methods.ENROLL) in {Code.PERMISSION_DENIED, Code.INVALID_ARGUMENT}
        assert await _call(channel, methods.RENEW) in {Code.UNAUTHENTICATED, Code.INVALID_ARGUMENT}
    async with open_channel(fleet.listeners["control"], callers["admin"]) as channel:
        assert await _call(channel, methods.ENROLL) is Code.UNIMPLEMENTED


@within(30)
@pytest.mark.parametrize("listener", ["control", "enroll"])
async def test_health_is_served_to_everybody_who_gets_a_connection(
    fleet: Fleet, callers: dict[str, ClientTls], listener: str
) -> None:
    who = "viewer" if listener == "control" else "none"
    async with open_channel(fleet.listeners[listener], callers[who]) as channel:
        answer = await channel.unary(HEALTH, health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


@within(30)
async def test_the_answer_to_a_refused_call_names_caller_and_call(fleet: Fleet, callers: dict[str, ClientTls]) -> None:
    async with open_channel(fleet.listeners["control"], callers["viewer"]) as channel:
        with pytest.raises(RpcError) as caught:
            await channel.unary(methods.REMOVE_NODE, node_service_pb2.RemoveNodeRequest(name="node"))
    assert caught.value.reason == "PERMISSION_DENIED"
    assert "user/the-viewer (viewer) may not call RemoveNode" in caught.value.message


async def _call(channel: Channel, method: Method[Any, Any]) -> Code:
    """Calls with an empty request; how it ended, OK when a stream that stays open has begun."""
    request = method.request_type()
    try:
        if not (method.client_streaming or method.server_streaming):
            await channel.unary(method, request)
            return Code.OK
        arguments = () if method.client_streaming else (request,)
        async with channel.stream(method, *arguments) as stream:
            if method.client_streaming:
                await stream.send(request)
                await stream.half_close()
            try:
                await stream.receive()
            except trio.EndOfChannel:
                pass
            except trio.BrokenResourceError:
                return Code.UNAVAILABLE
    except RpcError as error:
        return error.code
    return Code.OK
