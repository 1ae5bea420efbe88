"""Why the controller cannot be reached: one more look, without gRPC, which tells all causes in the same words."""

from __future__ import annotations

import ssl
from typing import Final

import trio

from shovey_trio.config.operator import ClientSection
from shovey_trio.core.addresses import split_address
from shovey_trio.core.errors import words_of
from shovey_trio.identity.user_certificate import ASK, UserCertificate

# Seconds for a connection, a handshake and the controller's first words.
_PATIENCE: Final = 3.0
_HTTP2: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"


async def why_unreachable(section: ClientSection, certificate: UserCertificate) -> str:
    """What is wrong and what to do, as one look at the controller shows it."""
    host, port = split_address(section.server)
    with trio.move_on_after(_PATIENCE):
        try:
            tcp = await trio.open_tcp_stream(host, port)
        except OSError as error:
            why = words_of(error.__cause__ or error)
            return (
                f"nothing answers at {section.server} ({why}): check --server, and that `shovey-trio serve` runs there"
            )
        async with tcp:
            return await _shake_hands(
                trio.SSLStream(tcp, _context(section), server_hostname=section.server_name or host),
                section,
                certificate,
            )
    return f"{section.server} does not answer within {_PATIENCE:g} s: check --server, and firewalls on the way there"


async def _shake_hands(
    stream: trio.SSLStream[trio.SocketStream], section: ClientSection, certificate: UserCertificate
) -> str:
    try:
        await stream.do_handshake()
    except trio.BrokenResourceError as error:
        if isinstance(error.__cause__, ssl.SSLCertVerificationError):
            return (
                f"what answers there has a certificate that {section.ca_file} does not vouch for "
                f"({error.__cause__.verify_message}): check --server, --server-name and --ca"
            )
        return f"what answers at {section.server} does not speak our TLS: is it the control address of a controller?"
    try:
        # With TLS 1.3 a client learns only now whether its certificate was taken.
        await stream.send_all(_HTTP2)
        if await stream.receive_some(1):
            return "it answers now: try again"
    except trio.BrokenResourceError:
        pass
    return f"it refuses {certificate}, issued by {certificate.issuer!r}: it is of another installation; {ASK}"


def _context(section: ClientSection) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=section.ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(section.certificate_file, section.key_file)
    return context
