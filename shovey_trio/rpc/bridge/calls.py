"""What a handler sees of its RPC, and how handlers are tied to methods.

These are protocols: a back-end provides the objects, and every back-end passes ``tests/rpc/bridge``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from google.protobuf.message import Message

from shovey_trio.rpc.bridge.methods import Method

Req = TypeVar("Req", bound=Message)
Res = TypeVar("Res", bound=Message)
ReqIn_co = TypeVar("ReqIn_co", bound=Message, covariant=True)
ResOut_contra = TypeVar("ResOut_contra", bound=Message, contravariant=True)


class ServerCall(Protocol[ReqIn_co, ResOut_contra]):
    """One RPC on the server, valid while its handler runs.

    The handler runs in a cancel scope of its own, which is cancelled when the client cancels, when the deadline
    passes, when the connection is lost, when the server's grace is over and by ``Server.end_calls``. Nothing else
    cancels it; in particular not the scope that ``open_server`` runs in, so that a handler can still be ended in order.

    Attributes:
        owner: whose call it is, as the authorization hook puts it here: what ``Server.end_calls`` finds it by.
    """

    owner: str

    @property
    def method(self) -> Method[Any, Any]:
        """The method that was called."""

    @property
    def metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """Invocation metadata; values of ``-bin`` keys are bytes."""

    @property
    def peer(self) -> str:
        """Transport address, such as ``ipv4:192.0.2.7:51234``."""

    @property
    def peer_certificate(self) -> bytes | None:
        """The verified client certificate in PEM; ``None`` where the listener asks for none."""

    @property
    def identities(self) -> tuple[str, ...]:
        """URIs among the client certificate's subject alternative names."""

    @property
    def deadline(self) -> float:
        """When the RPC ends by itself, in trio's clock; ``inf`` if the client set no deadline."""

    def time_remaining(self) -> float:
        """Seconds until ``deadline``, not below 0; ``inf`` without one."""

    async def receive(self) -> ReqIn_co:
        """Return the next request of a client-streaming RPC.

        Cancellation: nothing is lost, the next ``receive`` returns the message.

        Raises:
            trio.EndOfChannel: the client has half-closed; everything it sent was received.
            trio.BrokenResourceError: the client or the server is gone; the handler is about to be cancelled.
            trio.BusyResourceError: another task is receiving.
            AbortRpc: the message does not parse; let it end the RPC.
        """

    async def send(self, message: ResOut_contra) -> None:
        """Send a response of a server-streaming RPC; returns when grpc has taken it, so a slow client slows the sender.

        Cancellation: the message may or may not be delivered.

        Raises:
            trio.BrokenResourceError: the client is gone; the handler is about to be cancelled.
            trio.BusyResourceError: another task is sending, or what was posted has not gone yet.
        """

    @property
    def posted(self) -> int:
        """How many messages were posted and wait for those before them."""

    def post(self, message: ResOut_contra) -> None:
        """Send a response after those posted before it, without waiting; from trio's thread.

        For streams that seldom say something and are many: it needs no task that waits for something to say. There is
        no bound but the caller's, who has ``posted`` to look at. What cannot be sent any more because the client is
        gone or the handler has ended is dropped without a word, as what a client leaves unread is.

        Raises:
            trio.BusyResourceError: a task is sending.
        """

    def __aiter__(self) -> ServerCall[ReqIn_co, ResOut_contra]:
        """Iterate over the requests until the client half-closes."""

    async def __anext__(self) -> ReqIn_co:
        """Return the next request."""


Authorize = Callable[[ServerCall[Any, Any]], Awaitable[None]]
"""Runs before each handler, in the handler's task (context variables it sets reach the handler); raises to refuse."""


Reserve = Callable[[ServerCall[Any, Any]], Callable[[], None]]
"""Runs when a call comes in, before anything of it is read; raises to refuse it. What it returns is called once, when
the call has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A method and its handler; built by the four functions below, which check that their shapes agree.

    Attributes:
        method: what is called.
        handler: what is run.
        opening: how many calls may be at their beginning, which is until their handler first sends something or ends;
            more of them wait in grpc, where they hold up no other method. For methods that a whole fleet calls at the
            same moment. A back-end that cannot hold calls back takes it as ``None``: no bound.
    """

    method: Method[Any, Any]
    handler: Callable[..., Awaitable[Any]]
    opening: int | None = None


def serve_unary(method: Method[Req, Res], handler: Callable[[Req, ServerCall[Req, Res]], Awaitable[Res]]) -> Served:
    """Tie a handler that maps one request to one response."""
    return _served(method, handler, client_streaming=False, server_streaming=False)


def serve_server_stream(
    method: Method[Req, Res], handler: Callable[[Req, ServerCall[Req, Res]], Awaitable[None]]
) -> Served:
    """Tie a handler that answers one request with ``call.send`` as often as it likes."""
    return _served(method, handler, client_streaming=False, server_streaming=True)


def serve_client_stream(method: Method[Req, Res], handler: Callable[[ServerCall[Req, Res]], Awaitable[Res]]) -> Served:
    """Tie a handler that receives requests and returns one response."""
    return _served(method, handler, client_streaming=True, server_streaming=False)


def serve_bidi(
    method: Method[Req, Res], handler: Callable[[ServerCall[Req, Res]], Awaitable[None]], *, opening: int | None = None
) -> Served:
    """Tie a handler that receives and sends in any order; ``opening`` as in ``Served``."""
    served = _served(method, handler, client_streaming=True, server_streaming=True)
    return replace(served, opening=opening)


def _served(
    method: Method[Any, Any],
    handler: Callable[..., Awaitable[Any]],
    *,
    client_streaming: bool,
    server_streaming: bool,
) -> Served:
    if (method.client_streaming, method.server_streaming) != (client_streaming, server_streaming):
        raise ValueError(f"{method.path} has another shape than its handler")
    return Served(method=method, handler=handler)
