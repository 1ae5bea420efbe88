"""The REST listener against clients that misbehave: every one of them gets an answer or an end, nobody is stuck."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio
import trustme
from starlette.requests import Request
from starlette.responses import Response
from trio.testing import wait_all_tasks_blocked

from shovey_trio.http.asgi import PiecesResponse, Receive, Scope, Send, Write, hold, read_body
from shovey_trio.http.connection import HttpLimits
from shovey_trio.http.server import HttpOptions, HttpServer, open_http_server

HARD_LIMIT = 20.0
SHORT = 0.2


class Site:
    """A handler with one path per behaviour."""

    def __init__(self) -> None:
        self.body_time = 10.0
        self.seen: list[Request] = []
        self.held = trio.Event()
        self.release = trio.Event()
        self.hung_up = trio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        self.seen.append(request)
        response = await self._respond(request)
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        match request.url.path:
            case "/echo":
                return Response(await read_body(request, limit=1_000, within=self.body_time))
            case "/pass":

                async def passed(write: Write) -> None:
                    async for piece in request.stream():
                        await write(piece)

                return PiecesResponse(passed, media_type="application/octet-stream")
            case "/hold":
                self.held.set()
                try:
                    await hold(request, self.release.wait)
                except BaseException:
                    self.hung_up.set()
                    raise
                return Response(b"released")
            case "/large":

                async def much(write: Write) -> None:
                    for _ in range(1_000):
                        await write(bytes(100_000))

                return PiecesResponse(much)
            case "/bug":
                raise RuntimeError("a bug")
            case "/bug-later":

                async def half(write: Write) -> None:
                    await write(b"half")
                    raise RuntimeError("a bug")

                response = PiecesResponse(half)
                response.headers["Content-Length"] = "10"
                return response
            case "/gone":
                await request.body()
                assert (await request.receive())["type"] == "http.disconnect"
                self.hung_up.set()
                return Response(b"")
            case _:
                return Response(b"hello")


@asynccontextmanager
async def serving(site: Site, **changes: Any) -> AsyncIterator[HttpServer]:
    limits = HttpLimits(**{key: changes.pop(key) for key in list(changes) if key in HttpLimits.__slots__})
    with trio.fail_after(HARD_LIMIT):
        options = replace(HttpOptions(limits=limits), **changes)
        async with open_http_server(site, address="127.0.0.1:0", options=options) as server:
            yield server


async def connect(server: HttpServer) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", server.port)


async def everything(stream: trio.abc.ReceiveStream) -> bytes:
    """What comes until the end, or until the reset that ends it."""
    received = b""
    try:
        while data := await stream.receive_some():
            received += data
    except trio.BrokenResourceError:
        pass
    return received


async def exchange(server: HttpServer, data: bytes) -> bytes:
    async with await connect(server) as stream:
        await stream.send_all(data)
        return await everything(stream)


def get(path: str, *headers: str, close: bool = True) -> bytes:
    lines = [f"GET {path} HTTP/1.1", "Host: x", *headers, *(["Connection: close"] if close else []), "", ""]
    return "\r\n".join(lines).encode()


async def test_requests_of_one_connection_are_answered_in_order_and_it_stays_open() -> None:
    site = Site()
    async with serving(site) as server:
        answer = await exchange(server, get("/a", close=False) + get("/b"))
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert [request.url.path for request in site.seen] == ["/a", "/b"]


@pytest.mark.parametrize(
    "header", [b"Content-Length: 4\r\n", b"Content-Length: 4\r\nConnection: keep-alive\r\n"], ids=["plain", "h11"]
)
async def test_a_connection_outlives_a_request_with_a_body(header: bytes) -> None:
    async with serving(Site()) as server, await connect(server) as stream:
        for _ in range(3):
            await stream.send_all(b"PUT /echo HTTP/1.1\r\nHost: x\r\n" + header + b"\r\nbody")
            assert (await stream.receive_some()).endswith(b"\r\n\r\nbody")


async def test_head_is_answered_without_a_body_and_the_connection_stays_in_step() -> None:
    async with serving(Site()) as server:
        answer = await exchange(server, get("/a", close=False).replace(b"GET", b"HEAD") + get("/b"))
    first, _, rest = answer.partition(b"\r\n\r\n")
    assert b"Content-Length: 5" in first
    assert rest.startswith(b"HTTP/1.1 200 OK")
    assert rest.endswith(b"\r\n\r\nhello")


async def test_body_without_a_length_is_sent_in_chunks_to_http_11_and_to_the_end_to_http_10() -> None:
    async with serving(Site()) as server:
        body = b"POST /pass HTTP/1.%d\r\nHost: x\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody"
        assert (await exchange(server, body % 1)).endswith(b"4\r\nbody\r\n0\r\n\r\n")
        assert (await exchange(server, body % 0)).endswith(b"\r\n\r\nbody")


async def test_client_that_waits_for_100_continue_gets_it() -> None:
    async with serving(Site()) as server, await connect(server) as stream:
        head = (
            b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
        )
        await stream.send_all(head)
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 100 ")
        await stream.send_all(b"body")
        assert (await everything(stream)).endswith(b"\r\n\r\nbody")


async def test_declared_body_beyond_the_limit_is_413_before_a_byte_of_it_is_read() -> None:
    async with serving(Site()) as server:
        answer = await exchange(server, b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n" + bytes(1001))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert answer.endswith(b'{"error":["Content-length too long!"]}\n')


async def test_chunked_body_beyond_the_limit_is_413_though_the_client_goes_on_sending() -> None:
    async with serving(Site()) as server, await connect(server) as stream:
        await stream.send_all(b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(20):
            await stream.send_all(b"100\r\n" + bytes(256) + b"\r\n")
        answer = await everything(stream)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"larger than 1000 bytes" in answer


@pytest.mark.parametrize(
    "head", [["X-Long: " + "a" * 40_000], [f"X-{n}: a" for n in range(120)], ["X: " + "a" * 32_000] * 2]
)
async def test_head_that_is_too_large_is_431(head: list[str]) -> None:
    async with serving(Site()) as server:
        answer = await exchange(server, get("/", *head))
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b'{"error":["the request' in answer


async def test_garbage_is_400() -> None:
    async with serving(Site()) as server:
        assert (await exchange(server, b"\x16\x03\x01 what is this\r\n\r\n")).startswith(b"HTTP/1.1 400 ")


async def test_head_that_does_not_end_is_408() -> None:
    async with serving(Site(), head_time=SHORT) as server:
        answer = await exchange(server, b"GET / HTTP/1.1\r\nHost:")
    assert answer.startswith(b"HTTP/1.1 408 ")


async def test_head_that_drips_is_408_however_often_it_drips() -> None:
    async with (
        serving(Site(), head_time=SHORT) as server,
        await connect(server) as stream,
        trio.open_nursery() as nursery,
    ):

        async def drip() -> None:
            await stream.send_all(b"GET / HTTP/1.1\r\n")
            while True:
                await stream.send_all(b"X: a\r\n")
                await trio.sleep(SHORT / 10)

        nursery.start_soon(drip)
        assert (await everything(stream)).startswith(b"HTTP/1.1 408 ")
        nursery.cancel_scope.cancel(reason="answered")


async def test_body_that_does_not_come_is_408() -> None:
    async with serving(Site(), read_time=SHORT) as server:
        answer = await exchange(server, b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbo")
    assert answer.startswith(b"HTTP/1.1 408 ")


async def test_silent_connection_is_closed_without_a_word() -> None:
    async with serving(Site(), idle_time=SHORT) as server:
        assert await exchange(server, b"") == b""


async def test_client_that_does_not_read_is_cut_off() -> None:
    async with serving(Site(), write_time=SHORT) as server, await connect(server) as stream:
        await stream.send_all(get("/large"))
        # Other clients are served meanwhile, and the slow one's connection goes away by itself.
        assert (await exchange(server, get("/"))).endswith(b"hello")
        await server.stop(grace=HARD_LIMIT)


async def test_client_that_hangs_up_ends_the_handler_that_waits_for_it() -> None:
    site = Site()
    async with serving(site) as server:
        async with await connect(server) as stream:
            await stream.send_all(get("/hold"))
            await site.held.wait()
        await site.hung_up.wait()


async def test_what_a_held_client_sends_early_is_its_next_request() -> None:
    site = Site()
    async with serving(site) as server, await connect(server) as stream:
        await stream.send_all(get("/hold", close=False))
        await site.held.wait()
        await stream.send_all(get("/next"))
        site.release.set()
        answer = await everything(stream)
    assert b"released" in answer
    assert answer.endswith(b"hello")


async def test_connection_beyond_the_cap_is_503_and_the_others_live_on() -> None:
    site = Site()
    async with serving(site, connections=1) as server, await connect(server) as first:
        await first.send_all(get("/hold"))
        await site.held.wait()
        answer = await exchange(server, get("/"))
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert answer.endswith(b'\r\n\r\n{"error":["too many connections"]}\n')
        site.release.set()
        assert (await everything(first)).endswith(b"released")


@pytest.mark.parametrize("bound", [{"connections": 2}, {"connections": 10, "connections_per_peer": 2}])
async def test_connection_at_the_cap_takes_the_place_of_the_longest_idle_one(bound: dict[str, int]) -> None:
    site = Site()
    async with serving(site, **bound) as server, await connect(server) as first, await connect(server) as second:
        for idle in (first, second):
            await idle.send_all(get("/", close=False))
            assert b"hello" in await idle.receive_some(65_536)
            await wait_all_tasks_blocked()
        async with await connect(server) as third:
            await third.send_all(get("/hold"))
            assert await everything(first) == b""
            await site.held.wait()
            # The second is the one that waits for longest now; a busy one is never ended.
            assert (await exchange(server, get("/"))).endswith(b"hello")
            assert await everything(second) == b""
            site.release.set()
            assert (await everything(third)).endswith(b"released")


async def test_one_address_cannot_take_every_connection() -> None:
    site = Site()
    async with serving(site, connections=10, connections_per_peer=2) as server:
        async with await connect(server) as first, await connect(server) as second:
            for held in (first, second):
                await held.send_all(get("/hold"))
            while len(site.seen) < 2:
                await trio.lowlevel.checkpoint()
            assert (await exchange(server, get("/"))).startswith(b"HTTP/1.1 503 ")
            site.release.set()
            for held in (first, second):
                assert (await everything(held)).endswith(b"released")
        # Who has gone makes room, as soon as the server has noticed.
        while not (await exchange(server, get("/"))).endswith(b"hello"):
            await trio.lowlevel.checkpoint()


async def test_bug_in_a_handler_is_500_and_the_server_lives_on() -> None:
    async with serving(Site()) as server:
        assert (await exchange(server, get("/bug"))).startswith(b"HTTP/1.1 500 ")
        assert (await exchange(server, get("/"))).endswith(b"hello")


async def test_response_that_breaks_off_never_looks_whole() -> None:
    async with serving(Site()) as server:
        answer = await exchange(server, get("/bug-later"))
    assert b"Content-Length: 10" in answer
    assert answer.endswith(b"\r\n\r\nhalf")


async def test_stopping_lets_the_request_in_hand_end_and_closes_idle_connections() -> None:
    site = Site()
    async with (
        serving(site) as server,
        await connect(server) as idle,
        await connect(server) as busy,
        trio.open_nursery() as nursery,
    ):
        await idle.send_all(get("/", close=False))
        assert (await idle.receive_some()).endswith(b"hello")
        await busy.send_all(get("/hold", close=False))
        await site.held.wait()
        nursery.start_soon(lambda: server.stop(grace=HARD_LIMIT))
        assert await everything(idle) == b""
        with pytest.raises(OSError, match="all attempts"):
            await exchange(server, get("/"))
        site.release.set()
        assert (await everything(busy)).endswith(b"released")


async def test_grace_of_a_stop_ends() -> None:
    site = Site()
    async with serving(site) as server, await connect(server) as stream:
        await stream.send_all(get("/hold"))
        await site.held.wait()
        await server.stop(grace=SHORT)


async def test_tls_serves_and_a_plain_client_is_turned_away() -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    site = Site()
    async with serving(site, tls=context) as server:
        assert b"200 OK" not in await exchange(server, get("/"))
        secure = trio.SSLStream(await connect(server), client, server_hostname="localhost", https_compatible=True)
        async with secure:
            await secure.send_all(get("/"))
            assert (await everything(secure)).endswith(b"hello")
    assert [request.url.scheme for request in site.seen] == ["https"]


async def test_silent_tls_connections_of_one_address_keep_no_other_out() -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    bound = {"connections": 10, "connections_per_peer": 2}
    async with serving(Site(), tls=context, **bound) as server, await connect(server), await connect(server):
        async with await connect(server) as third:
            assert await everything(third) == b""
        other = await trio.open_tcp_stream("127.0.0.1", server.port, local_address="127.0.0.2")
        async with trio.SSLStream(other, client, server_hostname="localhost", https_compatible=True) as secure:
            await secure.send_all(get("/"))
            assert (await everything(secure)).endswith(b"hello")


@pytest.mark.parametrize("encoding", [b"chunked", b"identity"])
async def test_a_request_with_two_framings_is_refused_and_the_connection_closed(encoding: bytes) -> None:
    site = Site()
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: " + encoding
    async with serving(site) as server:
        answer = await exchange(server, head + b"\r\n\r\n0\r\n\r\n" + get("/smuggled"))
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 501 "))
    assert answer.count(b"HTTP/1.1 ") == 1
    assert site.seen == []


async def test_an_application_that_has_read_the_body_is_told_when_its_client_hangs_up() -> None:
    site = Site()
    async with serving(site) as server:
        async with await connect(server) as stream:
            await stream.send_all(get("/gone"))
            while not site.seen:
                await trio.lowlevel.checkpoint()
        await site.hung_up.wait()


async def test_body_that_drips_is_408_however_often_it_drips() -> None:
    site = Site()
    site.body_time = SHORT
    async with serving(site) as server, await connect(server) as stream, trio.open_nursery() as nursery:

        async def drip() -> None:
            await stream.send_all(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
            while True:
                await stream.send_all(b"a")
                await trio.sleep(SHORT / 10)

        nursery.start_soon(drip)
        assert (await everything(stream)).startswith(b"HTTP/1.1 408 ")
        nursery.cancel_scope.cancel(reason="answered")
