"""The standard health service, ``grpc.health.v1`` (https://github.com/grpc/grpc/blob/master/doc/health-checking.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio
from grpc_health.v1 import health_pb2

from shovey_trio.core.errors import Code
from shovey_trio.rpc.bridge.calls import Served, ServerCall, serve_server_stream, serve_unary
from shovey_trio.rpc.bridge.methods import service_methods
from shovey_trio.rpc.bridge.status import AbortRpc, RpcStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

_Response = health_pb2.HealthCheckResponse
_SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"]


class Health:
    """Which services serve; ``""`` stands for the server as a whole.

    ``set_serving`` never waits; watchers see the latest state, not every one in between.
    """

    def __init__(self) -> None:
        self._serving: dict[str, bool] = {"": True}
        self._changed = trio.Event()

    def set_serving(self, service: str, serving: bool) -> None:
        """Declare whether ``service`` (full name, or ``""``) serves, and tell its watchers."""
        self._serving[service] = serving
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    def set_all(self, serving: bool) -> None:
        """Declare it for every service that has a state; a daemon that drains says ``False`` before it stops."""
        for service in list(self._serving):
            self.set_serving(service, serving)

    def serves(self) -> Sequence[Served]:
        """Return what serves ``Check`` and ``Watch``."""
        methods = service_methods(_SERVICE)
        return (
            serve_unary(methods["Check"], self._check),
            serve_server_stream(methods["Watch"], self._watch),
        )

    async def _check(self, request: Any, _: ServerCall[Any, Any]) -> Any:
        if request.service not in self._serving:
            raise AbortRpc(RpcStatus(code=Code.NOT_FOUND, message="unknown service"))
        return _Response(status=self._status(request.service))

    async def _watch(self, request: Any, call: ServerCall[Any, Any]) -> None:
        sent: int | None = None
        while True:
            changed, status = self._changed, self._status(request.service)
            if status != sent:
                await call.send(_Response(status=status))
                sent = status
            await changed.wait()

    def _status(self, service: str) -> Any:
        match self._serving.get(service):
            case None:
                return _Response.SERVICE_UNKNOWN
            case True:
                return _Response.SERVING
            case _:
                return _Response.NOT_SERVING
