"""Telling systemd how the service is: the sd_notify protocol, one datagram per message (man sd_notify)."""

from __future__ import annotations

import os
import socket


def notify(message: str) -> bool:
    """Sends ``message`` (such as ``READY=1``) to systemd; False when nobody asked for it."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    target = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.sendto(message.encode(), target)
        except OSError:
            return False
    return True
