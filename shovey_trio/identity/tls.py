"""The controller's TLS material, read from its data directory as PEM bytes; read again on HUP.

``rpc.bridge.tls`` turns it into what grpc takes; nothing here imports grpc. A listener's certificate is renewed here
too, because the daemon has the CA key at hand: nobody should have to remember it once a year.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from cryptography import x509

from shovey_trio.identity.authority import (
    CertificateAuthority,
    CertificateUnreadable,
    hosts_of,
    issued_by,
    listener_hosts,
    read_certificates,
    renew_at,
)
from shovey_trio.identity.files import (
    check_secret_directory,
    contents_of,
    read_public,
    read_secret,
    write_public,
    write_secret,
)
from shovey_trio.identity.layout import DataDirectory, KeyPair
from shovey_trio.identity.requests import load_private_key, make_private_key, make_request, private_key_pem


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerTls:
    """One listener's identity; the fields are those of ``rpc.bridge.tls.ServerTls``.

    Attributes:
        certificate: PEM chain, leaf first.
        private_key: PEM; never shown in ``repr``.
        client_ca: PEM of what client certificates must chain to; None where clients show none.
    """

    certificate: bytes
    private_key: bytes = field(repr=False)
    client_ca: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerTls:
    """Everything the controller needs for TLS and for issuing certificates.

    Attributes:
        control: the listener with mutual TLS.
        enroll: the server-authenticated listener for Enroll and Renew.
        authority: issues certificates.
        trusted: every CA whose certificates are believed.
        ca_pem: the same as PEM, for nodes and clients to trust.
    """

    control: ListenerTls
    enroll: ListenerTls
    authority: CertificateAuthority
    trusted: tuple[x509.Certificate, ...]
    ca_pem: bytes


def load_authority(directory: DataDirectory) -> CertificateAuthority:
    """The CA of a data directory, with its key.

    Raises:
        As ``load_controller_tls``.
    """
    certificate, private_key = read_public(directory.ca_certificate), read_secret(directory.ca_key)
    with contents_of(directory.ca_certificate):
        read_certificates(certificate)
    with contents_of(directory.ca_key):
        return CertificateAuthority.from_pem(certificate, private_key)


def load_controller_tls(directory: DataDirectory) -> ControllerTls:
    """Reads all TLS files; blocking, a few milliseconds.

    Raises:
        InsecureFile: the directory or a key is open to others; the message names it.
        FileUnusable: a file is missing.
        CertificateUnreadable, KeyUnreadable: a file is damaged, or key and certificate do not belong together.
    """
    check_secret_directory(directory.root)
    ca_pem = read_public(directory.ca_certificate)
    authority = load_authority(directory)
    control, enroll = _load_pair(directory.control), _load_pair(directory.enroll)
    return ControllerTls(
        control=ListenerTls(certificate=control.certificate, private_key=control.private_key, client_ca=ca_pem),
        enroll=enroll,
        authority=authority,
        trusted=read_certificates(ca_pem),
        ca_pem=ca_pem,
    )


def issue_listener_files(authority: CertificateAuthority, pair: KeyPair, *, hosts: Iterable[str], now: float) -> None:
    """Writes a new key and certificate for a listener; blocking.

    Raises:
        OSError: a file cannot be written.
        ValueError: a host is neither an address nor a DNS name.
    """
    key = make_private_key()
    issued = authority.issue_listener(csr=make_request(key), hosts=hosts, now=now)
    write_secret(pair.key, private_key_pem(key))
    write_public(pair.certificate, issued.chain)


def renew_listeners_if_due(directory: DataDirectory, *, hosts: Iterable[str] = (), now: float) -> tuple[str, ...]:
    """Renews the listeners' certificates that are past two thirds of their life, of another CA, or short of a host.

    A renewed certificate keeps its key (so that a crash between two files cannot part them) and all its names. To be
    called at start, on HUP and once a day, before ``load_controller_tls``; blocking.

    Returns:
        The names of the listeners whose certificate is new: ``control``, ``enroll``.

    Raises:
        As ``load_controller_tls``, and OSError when a file cannot be written.
    """
    authority = load_authority(directory)
    renewed = []
    for pair in (directory.control, directory.enroll):
        certificate = read_public(pair.certificate)
        with contents_of(pair.certificate):
            leaf = read_certificates(certificate)[0]
        wanted = tuple(dict.fromkeys((*hosts_of(leaf), *listener_hosts(hosts))))
        # Another issuer: the CA was replaced, and new nodes are told to trust the new one alone.
        if issued_by(leaf, authority.certificate) and now < renew_at(leaf) and set(wanted) == set(hosts_of(leaf)):
            continue
        request = make_request(load_private_key(read_secret(pair.key)))
        write_public(pair.certificate, authority.issue_listener(csr=request, hosts=wanted, now=now).chain)
        renewed.append(pair.stem.name)
    return tuple(renewed)


def _load_pair(pair: KeyPair) -> ListenerTls:
    certificate, private_key = read_public(pair.certificate), read_secret(pair.key)
    with contents_of(pair.certificate):
        leaf = read_certificates(certificate)[0]
    with contents_of(pair.key):
        key = load_private_key(private_key)
    if leaf.public_key() != key.public_key():
        raise CertificateUnreadable(f"{pair.certificate} and {pair.key} do not belong together")
    return ListenerTls(certificate=certificate, private_key=private_key)
