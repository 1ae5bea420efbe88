"""gRPC inside trio: the only package that touches asyncio, trio-asyncio or grpcio's internals.

Servers: ``open_server`` with ``Listener`` and the methods it serves; handlers get a ``ServerCall``. Clients:
``open_channel``, then ``Channel.unary`` and ``Channel.stream``. ``health`` and ``reflection`` are imported by those who
serve them; they need the ``server`` extra.
"""

from __future__ import annotations

import shovey_trio.rpc.bridge._environment  # noqa: F401  # must come before anything that loads grpc
from shovey_trio.rpc.bridge._runtime import open_runtime as open_bridge
from shovey_trio.rpc.bridge.calls import (
    Authorize,
    Reserve,
    Served,
    ServerCall,
    serve_bidi,
    serve_client_stream,
    serve_server_stream,
    serve_unary,
)
from shovey_trio.rpc.bridge.client import Channel, ChannelOptions, ClientStream, open_channel
from shovey_trio.rpc.bridge.listener import Listener, ServerOptions
from shovey_trio.rpc.bridge.methods import Method, service_methods
from shovey_trio.rpc.bridge.server import MapError, Server, open_server
from shovey_trio.rpc.bridge.status import AbortRpc, ListenError, RpcError, RpcStatus
from shovey_trio.rpc.bridge.tls import ClientTls, ServerTls

__all__ = [
    "AbortRpc",
    "Authorize",
    "Channel",
    "ChannelOptions",
    "ClientStream",
    "ClientTls",
    "ListenError",
    "Listener",
    "MapError",
    "Method",
    "Reserve",
    "RpcError",
    "RpcStatus",
    "Served",
    "Server",
    "ServerCall",
    "ServerOptions",
    "ServerTls",
    "open_bridge",
    "open_channel",
    "open_server",
    "serve_bidi",
    "serve_client_stream",
    "serve_server_stream",
    "serve_unary",
    "service_methods",
]
