"""Server reflection, so that ``grpcurl`` and the like need no .proto files.

The answers come from grpcio's own servicer, which is synchronous and needs no I/O. The protocol is served under its
current name and the ``v1alpha`` one, whose messages are the same on the wire; clients try both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from grpc_reflection.v1alpha import reflection, reflection_pb2

from shovey_trio.rpc.bridge.calls import Served, ServerCall, serve_bidi
from shovey_trio.rpc.bridge.methods import service_methods

if TYPE_CHECKING:
    from shovey_trio.rpc.bridge.methods import Method

_METHOD = service_methods(reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"])["ServerReflectionInfo"]
_NAMES = (
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)


def serve_reflection(services: Iterable[str]) -> Sequence[Served]:
    """Return what describe ``services`` (full names) and reflection itself.

    The descriptors must be in protobuf's default pool, where generated modules put them.
    """
    servicer = reflection.ReflectionServicer(sorted({*services, _METHOD.service}))

    async def describe(call: ServerCall[Any, Any]) -> None:
        async for request in call:
            for response in servicer.ServerReflectionInfo(iter((request,)), None):
                await call.send(response)

    return tuple(serve_bidi(_renamed(_METHOD, name), describe) for name in _NAMES)


def _renamed(method: Method[Any, Any], path: str) -> Method[Any, Any]:
    return replace(method, path=path)
