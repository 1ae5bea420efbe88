"""Certificates of a listener and of a client, as PEM bytes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import grpc
from cryptography import x509

# One per connected peer: 16,384 entries of a certificate (~1 KiB) and its names, 20 MB when full.
_PARSED_CERTIFICATES: Final = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTls:
    """Identity of a listener.

    Attributes:
        certificate: chain, leaf first.
        private_key: key of the leaf; never shown in ``repr``.
        client_ca: certificates that client certificates must chain to. ``None``: clients are not asked for one.
    """

    certificate: bytes
    private_key: bytes = field(repr=False)
    client_ca: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTls:
    """What a client trusts, and who it is.

    Attributes:
        ca: certificates that the server's must chain to.
        certificate: the client's own chain, leaf first; ``None`` for a server-authenticated listener.
        private_key: key of the leaf; never shown in ``repr``.
    """

    ca: bytes
    certificate: bytes | None = None
    private_key: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("a client certificate needs its private key, and the other way round")


class ReloadableServerTls:
    """A listener's TLS identity that can be replaced while it serves; connections that are open keep theirs."""

    def __init__(self, tls: ServerTls) -> None:
        self._wants_clients = tls.client_ca is not None
        self._initial = _certificate_configuration(tls)
        # What the next handshake has still to be told; at most one, a newer one takes its place.
        self._news: deque[grpc.ServerCertificateConfiguration] = deque(maxlen=1)

    def credentials(self) -> grpc.ServerCredentials:
        """Return grpc credentials that ask for a new identity at every handshake; for one listener."""
        return grpc.dynamic_ssl_server_credentials(
            self._initial, self._fetch, require_client_authentication=self._wants_clients
        )

    def replace(self, tls: ServerTls) -> None:
        """Use ``tls`` from the next handshake on.

        Raises:
            ValueError: ``tls`` asks for client certificates and the listener did not, or the other way round; grpc
                fixes that when the listener opens.
        """
        if (tls.client_ca is not None) != self._wants_clients:
            raise ValueError("whether clients are asked for certificates cannot change while a listener is open")
        self._news.append(_certificate_configuration(tls))

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by grpc at every handshake, on threads of its own; None leaves everything as it is.

        Each identity is handed over once. The C core builds a new TLS context for whatever it is given, and drops the
        old one without regard to handshakes on other threads that are about to use it
        (``ssl_security_connector.cc``: ``server_handshaker_factory_`` is replaced under a lock and read without): with
        an identity for every handshake, a thousand agents that connect at once crash the process.
        """
        try:
            return self._news.popleft()
        except IndexError:
            return None


def channel_credentials(tls: ClientTls) -> grpc.ChannelCredentials:
    """Return grpc credentials for a client."""
    return grpc.ssl_channel_credentials(tls.ca, tls.private_key, tls.certificate)


@lru_cache(maxsize=_PARSED_CERTIFICATES)
def uri_identities(certificate: bytes) -> tuple[str, ...]:
    """Return the URIs among the subject alternative names of a PEM certificate that TLS has verified."""
    parsed = x509.load_pem_x509_certificate(certificate)
    try:
        names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(names.get_values_for_type(x509.UniformResourceIdentifier))


def _certificate_configuration(tls: ServerTls) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        ((tls.private_key, tls.certificate),), root_certificates=tls.client_ca
    )
