"""What a server serves and within which limits, as values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shovey_trio.rpc.bridge.calls import Served
from shovey_trio.rpc.bridge.tls import ServerTls


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """One address and what is served there.

    Attributes:
        name: key for ``Server.port`` and ``Server.reload_tls``.
        address: ``host:port``; port 0 takes a free one.
        serves: methods served here; any other is UNIMPLEMENTED.
        tls: ``None`` serves plain text, for tests and loopback.
    """

    name: str
    address: str
    serves: Sequence[Served]
    tls: ServerTls | None = None

    def by_path(self) -> dict[str, Served]:
        """Return them under the paths of their methods.

        Raises:
            ValueError: two handlers for one method.
        """
        by_path: dict[str, Served] = {}
        for served in self.serves:
            if served.method.path in by_path:
                raise ValueError(f"two handlers for {served.method.path}")
            by_path[served.method.path] = served
        return by_path


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Limits and keepalive of a server.

    Attributes:
        max_receive_bytes: largest request message; a larger one ends its RPC with RESOURCE_EXHAUSTED.
        max_concurrent_streams: RPCs in progress on one connection; further ones wait in the client.
        max_connections: to one listener; further ones are closed.
        max_metadata_bytes: metadata of one call, names and overhead included; more ends it with RESOURCE_EXHAUSTED.
        handshake_timeout: seconds in which a connection must have done TLS and HTTP/2's beginning.
        keepalive_interval: seconds between pings on a silent connection.
        keepalive_timeout: seconds without an answer after which a connection is lost.
        min_ping_interval: seconds; clients that ping more often are disconnected.
    """

    max_receive_bytes: int = 4 * 1024 * 1024
    max_concurrent_streams: int = 2_000
    max_connections: int = 25_000
    max_metadata_bytes: int = 8 * 1024
    handshake_timeout: float = 20.0
    keepalive_interval: float = 60.0
    keepalive_timeout: float = 20.0
    min_ping_interval: float = 5.0

    def arguments(self) -> list[tuple[str, int]]:
        """Return the C core's channel arguments."""
        return [
            ("grpc.max_receive_message_length", self.max_receive_bytes),
            ("grpc.max_concurrent_streams", self.max_concurrent_streams),
            ("grpc.max_allowed_incoming_connections", self.max_connections),
            # The first is where grpc begins to refuse at random, the second where it refuses all.
            ("grpc.max_metadata_size", self.max_metadata_bytes),
            ("grpc.absolute_max_metadata_size", self.max_metadata_bytes),
            ("grpc.http2.max_frame_size", 16 * 1024),
            ("grpc.server_handshake_timeout_ms", round(self.handshake_timeout * 1000)),
            ("grpc.keepalive_time_ms", round(self.keepalive_interval * 1000)),
            ("grpc.keepalive_timeout_ms", round(self.keepalive_timeout * 1000)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", round(self.min_ping_interval * 1000)),
            # The defaults drop calls when thousands of agents connect at once.
            ("grpc.server.max_pending_requests", 100_000),
            ("grpc.server.max_pending_requests_hard_limit", 200_000),
            ("grpc.server_max_unrequested_time_in_server", 120),
            # With probing, one stalled upload pins 4.2 MiB here; without, 0.2 MiB.
            ("grpc.http2.bdp_probe", 0),
            # TLS keeps a buffer of this size for each connection to send from; 16 KiB by default.
            ("grpc.tsi.max_frame_size", 4096),
            # The C core's record of every connection for channelz, which is not served here: some 3 KiB each.
            ("grpc.enable_channelz", 0),
            ("grpc.max_channel_trace_event_memory_per_node", 0),
            # A second daemon on the same port must fail, not take half of the connections.
            ("grpc.so_reuseport", 0),
        ]
