"""RPC methods as values: what a generated stub would know, without the stub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from google.protobuf import message_factory
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message

if TYPE_CHECKING:
    from google._upb._message import ServiceDescriptor as GeneratedServiceDescriptor

Req = TypeVar("Req", bound=Message)
Res = TypeVar("Res", bound=Message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Method(Generic[Req, Res]):
    """One RPC of a service.

    Attributes:
        path: ``/package.Service/Name``.
        request_type: message class that the client sends.
        response_type: message class that the server sends.
        client_streaming: the client sends any number of requests.
        server_streaming: the server sends any number of responses.
    """

    path: str
    request_type: type[Req]
    response_type: type[Res]
    client_streaming: bool = False
    server_streaming: bool = False

    def __post_init__(self) -> None:
        service, _, name = self.path.removeprefix("/").partition("/")
        if not (self.path.startswith("/") and service and name and "/" not in name):
            raise ValueError(f"a method path is /package.Service/Name, not {self.path!r}")

    @property
    def service(self) -> str:
        """Full name of the service, ``package.Service``."""
        return self.path[1 : self.path.rindex("/")]


def service_methods(descriptor: ServiceDescriptor | GeneratedServiceDescriptor) -> Mapping[str, Method[Any, Any]]:
    """Return the methods of a service by their short names, as the .proto file declares them."""
    return {
        method.name: Method(
            path=f"/{descriptor.full_name}/{method.name}",
            request_type=_message_class(method.input_type),
            response_type=_message_class(method.output_type),
            client_streaming=method.client_streaming,
            server_streaming=method.server_streaming,
        )
        for method in descriptor.methods
    }


def _message_class(descriptor: Any) -> type[Message]:
    # Two descriptor types are declared for one thing: the generated modules' and the factory's.
    return message_factory.GetMessageClass(descriptor)
