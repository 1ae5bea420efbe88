"""Addresses as they stand in settings and join strings: ``host:port``, IPv6 in brackets."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final

_PORTS: Final = range(65_536)


def split_address(address: str) -> tuple[str, int]:
    """Host and port of ``host:port`` or ``[ipv6]:port``.

    Raises:
        ValueError: it is not of this form.
    """
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    well_formed = colon and host and (bracketed or ":" not in host) and port.isascii() and port.isdigit()
    if not well_formed or any(character.isspace() for character in host) or int(port) not in _PORTS:
        raise ValueError("expected HOST:PORT, an IPv6 address in brackets")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """``host:port``, with the brackets that an IPv6 address needs."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reachable_address(listen: str) -> str:
    """A listening address is one to connect to, but for the wildcards: those mean this machine, seen from itself."""
    host, port = split_address(listen)
    try:
        address = ip_address(host)
    except ValueError:
        return listen
    return join_address("127.0.0.1" if address.version == 4 else "::1", port) if address.is_unspecified else listen


def is_loopback(listen: str) -> bool:
    """Whether an address can only be reached from this machine."""
    host, _ = split_address(listen)
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def peer_address(peer: str) -> str:
    """The address alone, of what a transport calls its peer: ``ipv4:192.0.2.7:5000``, ``[::1]:5000``."""
    text = peer.removeprefix("ipv4:").removeprefix("ipv6:").replace("%5B", "[").replace("%5D", "]")
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    return text[:64]
