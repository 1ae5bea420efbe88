"""Health and reflection, asked as other people's clients ask them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
import trio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from shovey_trio.core.errors import Code
from shovey_trio.rpc.bridge import Channel, Listener, Method, RpcError, open_channel, open_server, service_methods
from shovey_trio.rpc.bridge.health import Health
from shovey_trio.rpc.bridge.reflection import serve_reflection

HEALTH = service_methods(health_pb2.DESCRIPTOR.services_by_name["Health"])
STATUS = health_pb2.HealthCheckResponse.ServingStatus


def ask(service: str) -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=service)


@asynccontextmanager
async def health_channel(health: Health) -> AsyncIterator[tuple[Channel, str]]:
    serves = (*health.serves(), *serve_reflection(["grpc.health.v1.Health"]))
    async with open_server([Listener(name="a", address="127.0.0.1:0", serves=serves)]) as server:
        address = f"127.0.0.1:{server.port('a')}"
        async with open_channel(address, None) as channel:
            yield channel, address


async def test_check_tells_the_state_and_not_found_for_strangers():
    health = Health()
    health.set_serving("shovey.A", True)
    health.set_serving("shovey.B", False)
    with trio.fail_after(20):
        async with health_channel(health) as (channel, _):
            for service, status in [
                ("", STATUS.SERVING),
                ("shovey.A", STATUS.SERVING),
                ("shovey.B", STATUS.NOT_SERVING),
            ]:
                assert (await channel.unary(HEALTH["Check"], ask(service))).status == status
            with pytest.raises(RpcError) as caught:
                await channel.unary(HEALTH["Check"], ask("shovey.C"))
            assert caught.value.code is Code.NOT_FOUND


async def test_watch_tells_every_change_that_lasts():
    health = Health()
    with trio.fail_after(20):
        async with (
            health_channel(health) as (channel, _),
            channel.stream(HEALTH["Watch"], ask("shovey.A")) as stream,
        ):
            assert (await stream.receive()).status == STATUS.SERVICE_UNKNOWN
            health.set_serving("shovey.A", True)
            assert (await stream.receive()).status == STATUS.SERVING
            health.set_serving("other", True)  # says nothing about this one
            health.set_all(False)
            assert (await stream.receive()).status == STATUS.NOT_SERVING


async def test_a_stock_grpc_client_gets_its_health_check():
    def check(address: str) -> int:
        with grpc.insecure_channel(address) as channel:
            return health_pb2_grpc.HealthStub(channel).Check(ask(""), timeout=10).status

    with trio.fail_after(20):
        async with health_channel(Health()) as (_, address):
            assert await trio.to_thread.run_sync(check, address) == STATUS.SERVING


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_lists_services_and_describes_them(version):
    request, response = reflection_pb2.ServerReflectionRequest, reflection_pb2.ServerReflectionResponse
    info = Method(
        path=f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_type=request,
        response_type=response,
        client_streaming=True,
        server_streaming=True,
    )
    with trio.fail_after(20):
        async with health_channel(Health()) as (channel, _), channel.stream(info) as stream:
            await stream.send(request(list_services=""))
            listed = (await stream.receive()).list_services_response.service
            assert "grpc.health.v1.Health" in {service.name for service in listed}
            await stream.send(request(file_containing_symbol="grpc.health.v1.Health"))
            (described,) = (await stream.receive()).file_descriptor_response.file_descriptor_proto
            assert described == health_pb2.DESCRIPTOR.serialized_pb
            await stream.send(request(file_containing_symbol="no.such.Thing"))
            assert (await stream.receive()).error_response.error_code == Code.NOT_FOUND.value
            await stream.half_close()
            with pytest.raises(trio.EndOfChannel):
                await stream.receive()


def test_service_methods_know_path_shape_and_types():
    watch = HEALTH["Watch"]
    assert watch.path == "/grpc.health.v1.Health/Watch"
    assert (watch.client_streaming, watch.server_streaming) == (False, True)
    assert watch.request_type is health_pb2.HealthCheckRequest
    assert watch.service == "grpc.health.v1.Health"


@pytest.mark.parametrize("path", ["", "Service/Name", "/Service", "/a/b/c", "//x"])
def test_a_malformed_method_path_is_refused(path):
    with pytest.raises(ValueError, match="method path"):
        Method(path=path, request_type=health_pb2.HealthCheckRequest, response_type=health_pb2.HealthCheckResponse)
