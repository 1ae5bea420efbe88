"""A service with one method of each shape, whose handlers do what the request says and keep a record.

For conformance tests of the bridge and for its benchmark; a client in another process needs only the methods.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import trio
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc.error_details_pb2 import ErrorInfo

from shovey_trio.core.errors import Code
from shovey_trio.rpc.bridge import (
    AbortRpc,
    Method,
    RpcStatus,
    Served,
    ServerCall,
    serve_bidi,
    serve_client_stream,
    serve_server_stream,
    serve_unary,
)

Call = ServerCall[StringValue, StringValue]

UNARY = Method(path="/probe.Probe/Unary", request_type=StringValue, response_type=StringValue)
WATCH = Method(path="/probe.Probe/Watch", request_type=StringValue, response_type=StringValue, server_streaming=True)
UPLOAD = Method(path="/probe.Probe/Upload", request_type=StringValue, response_type=StringValue, client_streaming=True)
ECHO = Method(
    path="/probe.Probe/Echo",
    request_type=StringValue,
    response_type=StringValue,
    client_streaming=True,
    server_streaming=True,
)

KIB = "x" * 1024


def text(value: str) -> StringValue:
    """Return the message that carries ``value``."""
    return StringValue(value=value)


class Probe:
    """The handlers and what became of them.

    Attributes:
        started: handlers begun, by method name.
        ended: handlers ended, by how: ``ok``, ``cancelled`` or the exception's class name.
        sent: messages that watch handlers have sent.
        received: messages that upload handlers have received.
        calls: the calls, for what a test wants to see of them afterwards.
    """

    def __init__(self) -> None:
        self.started: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.sent = 0
        self.received = 0
        self.facts: dict[str, Any] = {}
        self.release = trio.Event()
        self._changed = trio.Event()

    def serves(self) -> tuple[Served, ...]:
        """Return all four serves."""
        return (
            serve_unary(UNARY, self._unary),
            serve_server_stream(WATCH, self._watch),
            serve_client_stream(UPLOAD, self._upload),
            serve_bidi(ECHO, self._echo),
        )

    async def until(self, condition: Callable[[Probe], bool]) -> None:
        """Return once ``condition`` holds; it is looked at whenever the record changes."""
        while not condition(self):
            await self._changed.wait()

    @property
    def running(self) -> int:
        """Handlers begun and not ended."""
        return self.started.total() - self.ended.total()

    def _note(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    @contextmanager
    def _recorded(self, name: str) -> Iterator[None]:
        self.started[name] += 1
        self._note()
        how = "ok"
        try:
            yield
        except trio.Cancelled:
            how = "cancelled"
            raise
        except BaseException as error:
            how = type(error).__name__
            raise
        finally:
            self.ended[how] += 1
            self._note()

    async def _unary(self, request: StringValue, call: Call) -> StringValue:
        with self._recorded("unary"):
            action = _ACTIONS.get(request.value)
            return text(request.value) if action is None else text(await action(self, call))

    async def _watch(self, request: StringValue, call: Call) -> None:
        with self._recorded("watch"):
            if request.value == "idle":
                await call.send(text("here"))
                await trio.sleep_forever()
            if request.value in _ACTIONS:
                await _ACTIONS[request.value](self, call)
            remaining = int(request.value) if request.value.isdigit() else -1
            payload = text(KIB)
            while remaining != 0:
                await call.send(payload)
                self.sent += 1
                self._note()
                remaining -= 1

    async def _upload(self, call: Call) -> StringValue:
        with self._recorded("upload"):
            count = 0
            async for message in call:
                count += 1
                self.received += 1
                self._note()
                if message.value in _ACTIONS:
                    await _ACTIONS[message.value](self, call)
            return text(str(count))

    async def _echo(self, call: Call) -> None:
        with self._recorded("echo"):
            async for message in call:
                if message.value in _ACTIONS:
                    await _ACTIONS[message.value](self, call)
                await call.send(message)


class ProbeError(Exception):
    """Mapped by ``map_probe_error``."""


class Secret(Exception):
    """A bug with something in its text that clients must not see."""


def map_probe_error(error: Exception) -> RpcStatus | None:
    """Map ``ProbeError`` alone."""
    if isinstance(error, ProbeError):
        info = ErrorInfo(reason="PROBE", domain="shovey-trio", metadata={"node": "web-1"})
        return RpcStatus(code=Code.NOT_FOUND, message="no such thing", details=(info,))
    return None


async def _sleep(probe: Probe, call: Call) -> str:
    await trio.sleep_forever()


async def _wait_release(probe: Probe, call: Call) -> str:
    await probe.release.wait()
    return "released"


async def _remaining(probe: Probe, call: Call) -> str:
    return str(call.time_remaining())


async def _raise_secret(probe: Probe, call: Call) -> str:
    raise Secret("password123")


async def _raise_mapped(probe: Probe, call: Call) -> str:
    raise ProbeError


async def _raise_in_nursery(probe: Probe, call: Call) -> str:
    async def fail() -> None:
        raise ProbeError

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fail)
        await trio.sleep_forever()


async def _give_up(probe: Probe, call: Call) -> str:
    """Send until flow control stops it, give up that send, fail."""
    stalled = False
    while not stalled:
        with trio.move_on_after(0.5) as patience:
            await call.send(text(KIB))
        stalled = patience.cancelled_caught
    raise ProbeError


async def _abort(probe: Probe, call: Call) -> str:
    raise AbortRpc(RpcStatus(code=Code.FAILED_PRECONDITION, message="not now"))


async def _identity(probe: Probe, call: Call) -> str:
    probe.facts.update(peer=call.peer, certificate=call.peer_certificate, metadata=call.metadata)
    return " ".join(call.identities)


async def _slow_receive(probe: Probe, call: Call) -> str:
    """Give up receiving after 10 ms again and again until eight messages have come; none may get lost."""
    got: list[str] = []
    probe.facts["timed_out"] = 0
    while len(got) < 8:
        with trio.move_on_after(0.01) as patience:
            got.append((await call.receive()).value)
        probe.facts["timed_out"] += patience.cancelled_caught
        probe._note()
    probe.facts["got"] = got
    probe._note()
    return "done"


_ACTIONS: dict[str, Callable[[Probe, Call], Awaitable[str]]] = {
    "sleep": _sleep,
    "wait": _wait_release,
    "remaining": _remaining,
    "secret": _raise_secret,
    "mapped": _raise_mapped,
    "group": _raise_in_nursery,
    "abort": _abort,
    "give-up": _give_up,
    "identity": _identity,
    "slow-receive": _slow_receive,
}
