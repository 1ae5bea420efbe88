"""How many calls may be in progress: shares of each caller, taken before anything of a call is read.

Whoever has a certificate is counted by the identity in it; strangers by their address. Nodes' long streams have shares
of their own: one node that opens many and says nothing must not keep others out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from shovey_trio.core.addresses import peer_address
from shovey_trio.core.shares import Shares
from shovey_trio.core.trust.attempt_limits import host_of
from shovey_trio.rpc import methods
from shovey_trio.rpc.bridge import ServerCall

# A node has one control stream, and a second one after a lost connection that was not noticed here yet.
_ATTACH: Final = 3
# One stream of output, and those of connections that were lost.
_PUSHES: Final = 8
# Of the strangers' places, one address has this part: behind it may be a proxy or a whole site.
_ADDRESSES: Final = 20
# One half of them is for calls with one answer, so that enrolment does not want for what streams of health have taken.
_HALVES: Final = 2


class CallPlaces:
    """Gives every call its place, or refuses it; ``open_server``'s ``reserve``."""

    def __init__(self, *, per_caller: int, strangers: int) -> None:
        self._callers = Shares("calls", total=None, each=per_caller)
        half = max(strangers // _HALVES, 1)
        each = max(half // _ADDRESSES, 1)
        self._strangers = Shares("stranger_calls", total=half, each=each)
        self._stranger_streams = Shares("stranger_streams", total=half, each=each)
        self._streams: Mapping[str, Shares] = {
            methods.ATTACH.path: Shares("control_streams", total=None, each=_ATTACH),
            methods.PUSH_OUTPUT.path: Shares("output_streams", total=None, each=_PUSHES),
        }

    def __call__(self, call: ServerCall[Any, Any]) -> Callable[[], None]:
        """Takes a place; what is returned gives it back.

        Raises:
            Overloaded: the caller has all that are its own, or strangers have all that are theirs.
        """
        identities = call.identities
        if not identities:
            shares = self._stranger_streams if call.method.server_streaming else self._strangers
            return shares.take(host_of(peer_address(call.peer)))
        return self._streams.get(call.method.path, self._callers).take(identities[0])
