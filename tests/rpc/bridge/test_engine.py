"""Which grpcio is served with, and how the engine on its completion queue behaves at the edges."""

from __future__ import annotations

import re
import tomllib
from functools import partial
from pathlib import Path

import grpc
import pytest
import structlog
import trio
from google.protobuf.wrappers_pb2 import StringValue

from lab.rpc_probe import ECHO, UNARY, Probe, text
from shovey_trio.core.errors import ConfigurationInvalid
from shovey_trio.rpc.bridge import (
    Listener,
    RpcError,
    ServerCall,
    open_channel,
    open_server,
    serve_bidi,
    serve_unary,
    server,
)
from shovey_trio.rpc.bridge import _cygrpc as capability
from shovey_trio.rpc.bridge._completions import Completions

Call = ServerCall[StringValue, StringValue]


def _listener(*serves) -> Listener:
    return Listener(name="a", address="127.0.0.1:0", serves=serves)


def test_the_server_works_with_the_grpcio_of_this_environment():
    capability.check_grpcio()


@pytest.mark.parametrize("version", ["1.84.9", "1.85.0", "1.86.0", "2.0.0"])
def test_a_grpcio_outside_of_the_tested_range_is_refused_with_the_range(monkeypatch, version):
    monkeypatch.setattr(grpc, "__version__", version)
    with pytest.raises(ConfigurationInvalid, match=re.escape(version) + ".*from 1.85.1 up to, but not including, 1.86"):
        capability.check_grpcio()


@pytest.mark.parametrize("missing", ["SendStatusFromServerOperation", "auth_context", "CompletionQueue"])
def test_a_grpcio_that_is_made_in_another_way_is_refused_by_name(monkeypatch, missing):
    monkeypatch.delattr(capability.cygrpc, missing)
    with pytest.raises(ConfigurationInvalid, match=missing):
        capability.check_grpcio()


async def test_no_server_starts_with_a_grpcio_that_it_was_not_made_for(monkeypatch):
    monkeypatch.setattr(grpc, "__version__", "2.0.0")
    with pytest.raises(ConfigurationInvalid):
        async with open_server([_listener()]):
            pass


def test_the_range_is_the_one_that_is_installed_by():
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    pinned = {line.partition(">")[0]: line.partition(">")[2] for line in project["dependencies"]}
    oldest, ceiling = (".".join(map(str, version)) for version in (capability.OLDEST, capability.CEILING))
    assert pinned["grpcio"] == f"={oldest},<{ceiling}"


async def test_calls_of_a_method_beyond_its_bound_wait_and_hold_up_no_other_method():
    taken = 0
    welcome = trio.Event()
    full = trio.Event()

    async def attach(call: Call) -> None:
        nonlocal taken
        taken += 1
        if taken == 3:
            full.set()
        await welcome.wait()
        await call.send(text("welcome"))
        await trio.sleep_forever()

    async def answer(request: StringValue, call: Call) -> StringValue:
        return request

    serves = [serve_bidi(ECHO, attach, opening=3), serve_unary(UNARY, answer)]
    welcomed = 0
    async with open_server([_listener(*serves)]) as serving:
        with trio.fail_after(30):
            async with open_channel(f"127.0.0.1:{serving.port('a')}", None) as channel, trio.open_nursery() as nursery:

                async def agent() -> None:
                    nonlocal welcomed
                    async with channel.stream(ECHO) as stream:
                        await stream.send(text("hello"))
                        await stream.receive()
                        welcomed += 1
                        if welcomed == 20:
                            nursery.cancel_scope.cancel(reason="all are in")
                        await trio.sleep_forever()

                for _ in range(20):
                    nursery.start_soon(agent)
                await full.wait()
                for _ in range(50):
                    assert (await channel.unary(UNARY, text("x"))).value == "x"
                assert taken == 3
                welcome.set()
    assert (taken, welcomed) == (20, 20)


async def test_a_beginning_that_fails_or_is_cancelled_makes_room_for_the_next():
    started = trio.Event()

    async def attach(call: Call) -> None:
        if (await call.receive()).value == "fail":
            raise RuntimeError("as a defect would")
        started.set()
        await trio.sleep_forever()

    with trio.fail_after(30):
        async with (
            open_server([_listener(serve_bidi(ECHO, attach, opening=1))]) as serving,
            open_channel(f"127.0.0.1:{serving.port('a')}", None) as channel,
        ):
            for _ in range(3):
                async with channel.stream(ECHO) as stream:
                    await stream.send(text("fail"))
                    with pytest.raises(RpcError):
                        await stream.receive()
            for _ in range(3):
                async with channel.stream(ECHO) as stream:
                    await stream.send(text("stay"))
                    await started.wait()
                started = trio.Event()


async def test_stopping_answers_calls_whose_request_has_not_come(monkeypatch):
    """A raw HTTP/2 client opens a unary call and sends nothing more; it is told, not only dropped."""
    monkeypatch.setattr(server, "_CLOSE_DEADLINE", 60.0)  # after which the C core would answer it
    probe = Probe()
    with trio.fail_after(30):
        async with open_server([_listener(*probe.serves())]) as serving:
            async with await trio.open_tcp_stream("127.0.0.1", serving.port("a")) as stream:
                await stream.send_all(_half_a_call(UNARY.path) + _PING)
                await _until(stream, _PING_ANSWERED)  # frames are handled in order: the C core knows the call
                async with open_channel(f"127.0.0.1:{serving.port('a')}", None) as channel:
                    await channel.unary(UNARY, text("x"))  # calls of one method are handed over in order
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(partial(serving.stop, grace=0))
                    await _read_to_trailers(stream)
            assert probe.started == {"unary": 1}


async def test_a_handler_that_outlives_its_server_finds_its_call_broken():
    """The C core ends the process if an operation is started on a queue that has been shut down."""
    outcomes: list[str] = []
    release = trio.Event()

    async def stubborn(call: Call) -> None:
        with trio.CancelScope(shield=True):
            await call.send(text("here"))
            await release.wait()
            for operation in (call.receive, partial(call.send, text("late"))):
                try:
                    await operation()
                except trio.BrokenResourceError:
                    outcomes.append("broken")

    async def serve(task_status=trio.TASK_STATUS_IGNORED):
        with trio.CancelScope() as scope:
            async with open_server([_listener(serve_bidi(ECHO, stubborn))]) as serving:
                task_status.started((scope, serving))
                await trio.sleep_forever()

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            scope, serving = await nursery.start(serve)
            async with open_channel(f"127.0.0.1:{serving.port('a')}", None) as channel, channel.stream(ECHO) as stream:
                await stream.receive()
                scope.cancel(reason="the test stops the server")
                await serving._engine._completions._drained.wait()
                release.set()
    assert outcomes == ["broken", "broken"]


async def test_a_queue_with_operations_that_never_complete_is_given_up_and_not_freed():
    completions = Completions()
    left = capability.cygrpc.Server((), False)
    left.register_completion_queue(completions.queue)
    left.start()
    left.request_call(completions.queue, completions.queue, print)
    with trio.fail_after(30), structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(completions.serve)
            with trio.move_on_after(0.05):
                await completions.aclose()
    assert [entry["event"] for entry in logs] == ["rpc.completions_outstanding"]


async def test_a_defect_in_one_completion_ends_no_other():
    completions = Completions()

    class Event:
        completion_type = capability.cygrpc.CompletionType.operation_complete

        @staticmethod
        def tag(_: object) -> None:
            raise RuntimeError("as a defect would")

    with structlog.testing.capture_logs() as logs:
        completions._take(Event())
    assert [entry["event"] for entry in logs] == ["rpc.completion_failed"]
    assert not completions._drained.is_set()


def _literal(name: bytes, value: bytes) -> bytes:
    return bytes((0, len(name))) + name + bytes((len(value),)) + value


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _half_a_call(path: str) -> bytes:
    headers = b"".join(
        _literal(name, value)
        for name, value in [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", path.encode()),
            (b":authority", b"x"),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
        ]
    )
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0) + _frame(1, 0x4, 1, headers)


_PING = _frame(6, 0, 0, b"12345678")
_PING_ANSWERED = _frame(6, 1, 0, b"12345678")


async def _until(stream: trio.SocketStream, wanted: bytes) -> None:
    received = b""
    while wanted not in received:
        chunk = await stream.receive_some(65536)
        assert chunk, "the server has closed the connection"
        received += chunk


async def _read_to_trailers(stream: trio.SocketStream) -> None:
    """Answer pings, as whoever is to go in peace must, and return once the first stream has its trailers."""
    received = b""
    while True:
        while len(received) < 9 or len(received) < 9 + int.from_bytes(received[:3], "big"):
            chunk = await stream.receive_some(65536)
            assert chunk, "the server has closed the connection"
            received += chunk
        end = 9 + int.from_bytes(received[:3], "big")
        kind, flags, number = received[3], received[4], int.from_bytes(received[5:9], "big")
        if kind == 6 and not flags & 1:
            await stream.send_all(_frame(6, 1, 0, received[9:end]))
        elif kind == 1 and flags & 1 and number == 1:
            return
        received = received[end:]
