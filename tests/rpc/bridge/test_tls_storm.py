"""What a whole fleet that connects at once must not do: crash the server, or be turned away for being slow."""

from __future__ import annotations

import grpc
import trio

from lab.rpc_probe import UNARY, Probe, text
from shovey_trio.rpc.bridge import Listener, open_channel, open_server
from shovey_trio.rpc.bridge.tls import ReloadableServerTls

IDENTITY = "shovey://acme/node/web-1"
# Longer than the pause between attempts to connect, which is where an attempt was given up once.
SLOW = 1.5


def test_each_identity_is_given_to_grpc_once_and_not_at_every_handshake(authority, monkeypatch):
    fetchers = []
    real = grpc.dynamic_ssl_server_credentials

    def keep_fetcher(initial, fetch, **options):
        fetchers.append(fetch)
        return real(initial, fetch, **options)

    monkeypatch.setattr(grpc, "dynamic_ssl_server_credentials", keep_fetcher)
    tls = ReloadableServerTls(authority.server_tls(mutual=True))
    tls.credentials()
    [fetch] = fetchers
    assert fetch() is None
    tls.replace(authority.server_tls(mutual=True))
    tls.replace(authority.server_tls(mutual=True))
    assert isinstance(fetch(), grpc.ServerCertificateConfiguration)
    assert fetch() is None


async def test_a_slow_handshake_is_waited_for_and_not_begun_anew(authority):
    connections = 0

    async def pass_on(source: trio.SocketStream, target: trio.SocketStream) -> None:
        async for data in source:
            await target.send_all(data)

    async def proxy(client: trio.SocketStream) -> None:
        nonlocal connections
        connections += 1
        async with await trio.open_tcp_stream("127.0.0.1", server.port("a")) as target, trio.open_nursery() as both:
            await trio.sleep(SLOW)  # the server is busy with others
            both.start_soon(pass_on, client, target)
            await pass_on(target, client)
            both.cancel_scope.cancel(reason="the server has closed")

    listener = Listener(name="a", address="127.0.0.1:0", serves=Probe().serves(), tls=authority.server_tls(mutual=True))
    with trio.fail_after(20):
        async with open_server([listener]) as server, trio.open_nursery() as nursery:
            [entrance] = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, proxy, [entrance])
            port = entrance.socket.getsockname()[1]
            async with open_channel(f"127.0.0.1:{port}", authority.client_tls(IDENTITY)) as channel:
                assert (await channel.unary(UNARY, text("identity"))).value == IDENTITY
            nursery.cancel_scope.cancel(reason="done")
    assert connections == 1
