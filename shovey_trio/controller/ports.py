"""Whether the controller's listeners can be opened, asked before anything else is: a taken port is one line."""

from __future__ import annotations

import errno
import socket

from shovey_trio.config.server import ServerSettings
from shovey_trio.core.addresses import split_address
from shovey_trio.core.errors import Code, Exit, ShoveyError, words_of


class CannotListen(ShoveyError):
    """An address is taken, not ours, or not permitted; ``address`` and ``setting`` name it."""

    reason, code, http, exit = "CANNOT_LISTEN", Code.UNAVAILABLE, 503, Exit.BUSY


def check_listeners(settings: ServerSettings) -> None:
    """Holds when every listener that is enabled could be opened a moment ago; blocking.

    Raises:
        CannotListen: one cannot; the message says which, why, and what to do.
    """
    for setting, address in settings.listeners.items():
        try:
            probe_port(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                why = "another program has that port (`ss -ltnp` says which): stop it, or choose another port"
            else:
                why = f"{words_of(error)}: it must be an address of this host, and a port that we may use"
            raise CannotListen(
                f"cannot listen on {address} ({setting}): {why}", address=address, setting=setting
            ) from None


def probe_port(address: str) -> None:
    """Listens on an address for a moment; blocking.

    Raises:
        OSError: it cannot be listened on.
    """
    host, port = split_address(address)
    family, kind, proto, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    with socket.socket(family, kind, proto) as probe:
        # Without it, connections that were just closed would look like a listener.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(target)
        probe.listen(1)
