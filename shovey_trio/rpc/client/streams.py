"""Streams from the server that outlive a lost connection or a restart of the controller."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from typing import Final, Generic, TypeVar

import trio
from google.protobuf.message import Message

from shovey_trio.rpc.bridge import Channel, ClientStream, Method, RpcError
from shovey_trio.rpc.client.retry import RetryPolicy, is_lost_contact, unreachable

Req = TypeVar("Req", bound=Message)
Res = TypeVar("Res", bound=Message)

LostContact = Callable[[RpcError], None]
"""Told of each lost connection before the stream is resumed, so that a person can be told."""

# Seconds a silent stream must have been open for its next loss to be a new one and not the same trouble going on:
# longer than an attempt to connect (20 s) and than keepalive takes to notice a dead peer (50 s).
_STABLE_AFTER: Final = 60.0


class ResumingStream(Generic[Req, Res]):
    """Responses of one server-streaming RPC, each exactly once, across reconnects; made by ``ShoveyClient``.

    After each response ``advance`` moves the request forward, so that the same RPC asked again goes on behind it. A
    lost stream is asked for again with growing pauses until ``policy.stream_patience`` is over.
    """

    def __init__(
        self,
        channel: Channel,
        method: Method[Req, Res],
        request: Req,
        advance: Callable[[Req, Res], None],
        *,
        policy: RetryPolicy,
        target: str,
        on_lost: LostContact | None,
    ) -> None:
        self._channel = channel
        self._method = method
        self._request = request
        self._advance = advance
        self._policy = policy
        self._target = target
        self._on_lost = on_lost
        self._resources = AsyncExitStack()
        self._stream: ClientStream[Req, Res] | None = None
        self._deadline: float | None = None
        self._opened_at = 0.0
        self._lost_at: float | None = None
        self._pauses: Iterator[float] = policy.pauses()

    async def receive(self) -> Res:
        """Return the next response.

        Cancellation: nothing is lost, the next ``receive`` returns the response.

        Raises:
            trio.EndOfChannel: the server has ended the stream with OK.
            Unreachable: the connection was lost and did not come back in time.
            RpcError: the server has refused or failed the RPC.
        """
        while True:
            if self._stream is None:
                await self.open()
            assert self._stream is not None
            try:
                response = await self._stream.receive()
            except RpcError as error:
                await self._recover(error)
                continue
            self._advance(self._request, response)
            self._settle()
            return response

    def __aiter__(self) -> ResumingStream[Req, Res]:
        return self

    async def __anext__(self) -> Res:
        try:
            return await self.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    async def open(self) -> None:
        """Ask for the stream; done at the start and after each loss.

        The RPC's deadline is always that of the scope it was first opened in: a ``receive`` in a shorter one must not
        ask for a stream that ends with it.
        """
        if self._deadline is None:
            self._deadline = trio.current_effective_deadline()
        with trio.CancelScope(shield=True, deadline=self._deadline):
            self._stream = await self._resources.enter_async_context(self._channel.stream(self._method, self._request))
        self._opened_at = trio.current_time()

    async def aclose(self) -> None:
        """End the RPC. Nothing to wait for."""
        self._stream = None
        await self._resources.aclose()

    async def _recover(self, error: RpcError) -> None:
        """Leave the failed stream behind and wait for the moment to ask again."""
        if not is_lost_contact(error):
            raise error
        now = trio.current_time()
        if self._lost_at is not None and now - self._opened_at > _STABLE_AFTER:
            self._settle()
        if self._lost_at is None:
            self._lost_at = now
            if self._on_lost is not None:
                self._on_lost(error)
        pause = next(self._pauses)
        if now + pause - self._lost_at > self._policy.stream_patience:
            raise unreachable(error, self._target) from error
        await self.aclose()
        await trio.sleep(pause)

    def _settle(self) -> None:
        if self._lost_at is not None:
            self._lost_at = None
            self._pauses = self._policy.pauses()
