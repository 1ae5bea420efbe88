"""TLS: versions, identities, the two kinds of listener, reload."""

from __future__ import annotations

import ssl
import subprocess
import sys

import pytest
import trio
from cryptography import x509

from lab.rpc_certificates import CertificateAuthority
from lab.rpc_probe import UNARY, Probe, text
from shovey_trio.core.errors import Code
from shovey_trio.rpc.bridge import ChannelOptions, ClientTls, Listener, RpcError, open_channel, open_server

IDENTITY = "shovey://acme/node/web-1"


def listeners(authority: CertificateAuthority, probe: Probe) -> list[Listener]:
    """The product's two: mutual TLS, and server-authenticated."""
    return [
        Listener(name="mutual", address="127.0.0.1:0", serves=probe.serves(), tls=authority.server_tls(mutual=True)),
        Listener(name="enroll", address="127.0.0.1:0", serves=probe.serves(), tls=authority.server_tls(mutual=False)),
    ]


async def _ask_identity(port: int, tls: ClientTls, options: ChannelOptions | None = None) -> str:
    async with open_channel(f"127.0.0.1:{port}", tls, options=options) as channel:
        return (await channel.unary(UNARY, text("identity"))).value


async def test_handlers_see_the_client_certificates_identity(authority):
    probe = Probe()
    with trio.fail_after(20):
        async with open_server(listeners(authority, probe)) as server:
            assert await _ask_identity(server.port("mutual"), authority.client_tls(IDENTITY)) == IDENTITY
            certificate = x509.load_pem_x509_certificate(probe.facts["certificate"])
            assert certificate.issuer == x509.load_pem_x509_certificate(authority.pem).subject


async def test_a_client_without_certificate_is_served_only_where_none_is_asked_for(authority):
    probe = Probe()
    with trio.fail_after(20):
        async with open_server(listeners(authority, probe)) as server:
            with pytest.raises(RpcError) as caught:
                await _ask_identity(server.port("mutual"), authority.client_tls(None))
            assert caught.value.code is Code.UNAVAILABLE
            assert probe.started.total() == 0
            assert await _ask_identity(server.port("enroll"), authority.client_tls(None)) == ""
            assert probe.facts["certificate"] is None


async def test_a_certificate_of_another_authority_is_refused(authority):
    stranger = CertificateAuthority("another CA").client_tls(IDENTITY)
    tls = ClientTls(ca=authority.pem, certificate=stranger.certificate, private_key=stranger.private_key)
    probe = Probe()
    with trio.fail_after(20):
        async with open_server(listeners(authority, probe)) as server:
            with pytest.raises(RpcError) as caught:
                await _ask_identity(server.port("mutual"), tls)
            assert caught.value.code is Code.UNAVAILABLE
            assert probe.started.total() == 0


async def test_a_server_of_another_authority_is_refused_by_the_client(authority):
    with trio.fail_after(20):
        async with open_server(listeners(authority, Probe())) as server:
            with pytest.raises(RpcError) as caught:
                await _ask_identity(server.port("enroll"), ClientTls(ca=CertificateAuthority("another CA").pem))
            assert caught.value.code is Code.UNAVAILABLE


async def test_the_servers_name_is_checked_and_can_be_overridden(authority):
    with trio.fail_after(20):
        async with open_server(listeners(authority, Probe())) as server:
            port, tls = server.port("enroll"), authority.client_tls(None)
            with pytest.raises(RpcError):
                await _ask_identity(port, tls, ChannelOptions(server_name="elsewhere.example"))
            assert await _ask_identity(port, tls, ChannelOptions(server_name="localhost")) == ""


@pytest.mark.parametrize("listener", ["mutual", "enroll"])
async def test_only_tls_1_3_is_spoken(authority, listener):
    with trio.fail_after(20):
        async with open_server(listeners(authority, Probe())) as server:
            port = server.port(listener)
            assert await _handshake(port, authority, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
            with pytest.raises(trio.BrokenResourceError) as caught:
                await _handshake(port, authority, ssl.TLSVersion.TLSv1_2)
            assert isinstance(caught.value.__cause__, ssl.SSLError)


async def _handshake(port: int, authority: CertificateAuthority, version: ssl.TLSVersion) -> str | None:
    context = ssl.create_default_context(cadata=authority.pem.decode())
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    tcp = await trio.open_tcp_stream("127.0.0.1", port)
    async with trio.SSLStream(tcp, context, server_hostname="localhost", https_compatible=True) as stream:
        await stream.do_handshake()
        return stream.version()


@pytest.mark.parametrize("first", ["import grpc", "import grpc, grpc.aio"])
def test_importing_grpc_first_cannot_bring_tls_1_2_back(first):
    environment = {"PATH": "/usr/bin:/bin"}
    code = f"{first}\ntry:\n import shovey_trio.rpc.bridge\nexcept RuntimeError as error:\n print(error)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert "TLS 1.2 can no longer be ruled out" in done.stdout


async def test_new_connections_use_a_reloaded_certificate_and_old_ones_stay(authority):
    renewed = CertificateAuthority("next CA")
    probe = Probe()
    with trio.fail_after(30):
        async with open_server(listeners(authority, probe)) as server:
            port = server.port("mutual")
            async with open_channel(f"127.0.0.1:{port}", authority.client_tls(IDENTITY)) as old:
                await old.unary(UNARY, text("x"))
                server.reload_tls("mutual", renewed.server_tls(mutual=True))
                assert await _ask_identity(port, renewed.client_tls(IDENTITY)) == IDENTITY
                with pytest.raises(RpcError):
                    await _ask_identity(port, authority.client_tls(IDENTITY))
                await old.unary(UNARY, text("x"))


async def test_reload_cannot_turn_client_certificates_off(authority):
    with trio.fail_after(20):
        async with open_server(listeners(authority, Probe())) as server:
            with pytest.raises(ValueError, match="certificates"):
                server.reload_tls("mutual", authority.server_tls(mutual=False))


async def test_garbage_and_plain_text_on_the_tls_port_do_not_stop_the_server(authority):
    with trio.fail_after(20):
        async with open_server(listeners(authority, Probe())) as server:
            port = server.port("mutual")
            for _ in range(20):
                async with await trio.open_tcp_stream("127.0.0.1", port) as stranger:
                    try:
                        await stranger.send_all(b"\x16\x03\x01" + b"\xff" * 500)
                        while await stranger.receive_some(65536):
                            pass
                    except trio.BrokenResourceError:
                        pass
            async with open_channel(f"127.0.0.1:{port}", None) as plain:
                with pytest.raises(RpcError):
                    await plain.unary(UNARY, text("x"))
            assert await _ask_identity(port, authority.client_tls(IDENTITY)) == IDENTITY


def test_private_keys_are_not_shown(authority):
    assert "PRIVATE" not in repr(authority.server_tls(mutual=True))
    assert "PRIVATE" not in repr(authority.client_tls(IDENTITY))


def test_a_client_certificate_needs_its_key(authority):
    with pytest.raises(ValueError, match="private key"):
        ClientTls(ca=authority.pem, certificate=authority.pem)
