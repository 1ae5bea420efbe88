"""The conformance suite of the gRPC bridge: what must hold with every grpcio that is claimed (tools/grpc_range.sh)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NamedTuple

import pytest

from lab.rpc_certificates import CertificateAuthority
from lab.rpc_probe import Probe, map_probe_error
from shovey_trio.rpc.bridge import Channel, Listener, Server, open_channel, open_server

PLAIN = "plain"


class Rig(NamedTuple):
    """A server with the probe service, and a channel to it."""

    probe: Probe
    server: Server
    channel: Channel


OpenRig = Callable[..., AbstractAsyncContextManager[Rig]]


@pytest.fixture
def open_rig() -> OpenRig:
    @asynccontextmanager
    async def open_rig(**options: Any) -> AsyncIterator[Rig]:
        probe = Probe()
        listener = Listener(name=PLAIN, address="127.0.0.1:0", serves=probe.serves())
        async with (
            open_server([listener], map_error=map_probe_error, **options) as server,
            open_channel(f"127.0.0.1:{server.port(PLAIN)}", None) as channel,
        ):
            yield Rig(probe, server, channel)

    return open_rig


@pytest.fixture(scope="session")
def authority() -> CertificateAuthority:
    return CertificateAuthority()
