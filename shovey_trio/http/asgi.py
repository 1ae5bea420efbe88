"""ASGI 3 (https://asgi.readthedocs.io): one request and its response as an application sees them.

Applications are what Starlette makes, or plain callables. ``HttpRefused`` that leaves an application, its own or one
that its ``receive`` has raised, is answered by the connection; so is every other exception, as an error of ours.

Beyond ASGI, ``scope["extensions"]["shovey.hold"]`` is a function that waits for the application while the client is
there; ``hold`` uses it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import trio
from starlette.responses import Response
from starlette.types import ASGIApp as App
from starlette.types import Message, Receive, Scope, Send

from shovey_trio.core.addresses import split_address
from shovey_trio.http.bodies import Body
from shovey_trio.http.messages import HttpRefused
from shovey_trio.http.replies import ConnectionCut, Reply

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = [
    "App",
    "Exchange",
    "Message",
    "PiecesResponse",
    "Receive",
    "Scope",
    "Send",
    "Write",
    "hold",
    "peer_of",
    "read_body",
]

_HOLD: Final = "shovey.hold"
_ASGI: Final = {"version": "3.0", "spec_version": "2.4"}
Wait = Callable[[], Awaitable[None]]
Write = Callable[[bytes], Awaitable[None]]


class Exchange:
    """A request with its response, for one call of an application."""

    def __init__(
        self,
        *,
        method: str,
        target: str,
        headers: Mapping[bytes, bytes],
        scheme: str,
        peer: str,
        body: Body,
        reply: Reply,
        wait_while_connected: Callable[[Wait], Awaitable[None]],
    ) -> None:
        self._body = body
        self._reply = reply
        self._wait = wait_while_connected
        self._taken = False
        self._begun: tuple[int, dict[str, str]] | None = None
        path, _, query = target.partition("?")
        self.scope: Scope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": "1.1",
            "method": method,
            "scheme": scheme,
            "path": unquote(path) if "%" in path else path,
            "raw_path": path.encode("ascii"),
            "query_string": query.encode("ascii"),
            "root_path": "",
            "headers": list(headers.items()),
            "client": _split_peer(peer),
            "server": None,
            "extensions": {_HOLD: wait_while_connected},
        }

    async def receive(self) -> Message:
        """The next piece of the body; after the last one, waits until the client hangs up or the server stops.

        Raises:
            HttpRefused: the body does not come in time.
        """
        if not self._taken:
            piece = await self._body.receive()
            self._taken = not piece or self._body.is_over()
            return {"type": "http.request", "body": piece, "more_body": not self._taken}
        with suppress(ConnectionCut):
            await self._wait(trio.sleep_forever)
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Takes the response, piece by piece; waits while the client is slow.

        Raises:
            ConnectionCut: the client is gone or does not read.
        """
        if message["type"] == "http.response.start":
            fields = {_field_name(name): value.decode("latin-1") for name, value in message.get("headers", ())}
            self._begun = (message["status"], fields)
            return
        data, more = message.get("body", b""), message.get("more_body", False)
        if self._begun is not None:
            (status, fields), self._begun = self._begun, None
            await self._reply.begin(status, fields, data, whole=not more)
        else:
            await self._reply.write(data)
            if not more:
                await self._reply.finish()


class PiecesResponse(Response):
    """A response whose body is written piece by piece, by a function that is given ``write``."""

    def __init__(self, pieces: Callable[[Write], Awaitable[None]], **options: Any) -> None:
        super().__init__(None, **options)
        self._pieces = pieces
        self.raw_headers = [field for field in self.raw_headers if field[0] != b"content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def write(data: bytes) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": True})

        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await self._pieces(write)
        await send({"type": "http.response.body"})


async def read_body(request: Request, *, limit: int, within: float) -> bytes:
    """All of a request's body.

    Raises:
        HttpRefused: it has more than ``limit`` bytes (413), or takes longer than ``within`` seconds (408);
            that is seen when the next piece has come, or does not come within the connection's limit for it.
    """
    if int(request.headers.get("content-length", "0")) > limit:
        raise HttpRefused(HttpRefused.TOO_LARGE, "Content-length too long!")
    # Looked at between pieces, each of which has its own limit: a scope would cost more than most bodies.
    deadline = trio.current_time() + within
    body = bytearray()
    while trio.current_time() < deadline:
        message = await request.receive()
        body += message.get("body", b"")
        if len(body) > limit:
            raise HttpRefused(HttpRefused.TOO_LARGE, f"the body is larger than {limit} bytes")
        if not message.get("more_body", False):
            return bytes(body)
    raise HttpRefused(HttpRefused.TIMED_OUT, "the request's body took too long")


async def hold(request: Request, wait: Wait) -> None:
    """Waits before the answer, at most until the server stops; a client that hangs up ends the handler.

    Raises:
        Whatever ``wait`` raises.
    """
    held = request.scope["extensions"].get(_HOLD)
    await (wait() if held is None else held(wait))


def peer_of(request: Request) -> str:
    """The address that a request comes from, without its port."""
    client = request.scope["client"]
    return client[0] if client is not None else "?"


@lru_cache(maxsize=1024)
def _split_peer(peer: str) -> tuple[str, int] | None:
    try:
        return split_address(peer)
    except ValueError:
        return None


@lru_cache(maxsize=256)
def _field_name(name: bytes) -> str:
    """As HTTP/1 spells it: clients of the last century look for ``Content-Length``."""
    return "-".join([word.capitalize() for word in name.decode("latin-1").split("-")])
