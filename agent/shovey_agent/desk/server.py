"""The launcher's side of the socket: a ``LocalDesk`` for another process that is not trusted.

What a peer can do is what is answered here, and no more: hand in signed orders, read the output and the end of runs,
say that a run's report is durable, pass signed key sets on. It names runs, never files: a run id is looked up among the
runs that are known, and becomes part of no path. A peer that does not keep to the protocol loses its connection; one
that asks without reading the answers is not read any more.
"""

from __future__ import annotations

import math
import socket
import struct
from collections.abc import Callable

import structlog
import trio

from shovey_agent.desk.launcher_trust import LauncherTrust
from shovey_agent.desk.local import LocalDesk
from shovey_agent.desk.refusals import LineBudget, RefusalLog
from shovey_agent.desk.wire import (
    MAX_CHUNKS,
    MAX_OUTPUT,
    MAX_REQUEST,
    DeskProtocolError,
    FrameStream,
    FrameTooLarge,
    parse,
    run_message,
    verdict_message,
    whitelist_message,
)
from shovey_trio.core.trust.key_sets import KeySetRefused
from shovey_trio.core.trust.orders import MAX_CLOCK_SKEW
from shovey_trio.observe.threads import run_in_thread
from shovey_trio.rpc.convert import asked_input, chunk_message, signed_order_value
from shovey_trio.v1 import launcher_pb2 as pb

_log = structlog.get_logger(__name__)

# One is needed; a second while an old one is on its way out. Each costs at most its requests: 8 MiB.
MAX_CONNECTIONS = 4
# Requests of one connection that are being answered; further ones stay in the socket.
_IN_HAND = 8
_UCRED = struct.Struct("3i")  # struct ucred of unix(7)


class DeskServer:
    """Serves one desk. It is the desk's one ``NewsListener``.

    Args:
        desk: what is served.
        trust: whose orders it takes; learns newer key sets.
        peers: the user ids that may connect.
        now: this node's clock, unix seconds.
    """

    def __init__(
        self, *, desk: LocalDesk, trust: LauncherTrust, peers: frozenset[int], now: Callable[[], float]
    ) -> None:
        self._desk = desk
        self._trust = trust
        self._peers = peers
        self._now = now
        self._connections: set[_Connection] = set()
        # Whoever connects a thousand times shall not write a thousand lines.
        self._lines = LineBudget()
        self._refusals = RefusalLog(self._lines)
        self._turned_away = 0

    async def serve(self, listener: socket.socket) -> None:
        """Serves until cancelled; no peer can end it. Owns ``listener``, which listens already."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._desk.serve, self)
            sock = trio.socket.from_stdlib_socket(listener)
            await trio.serve_listeners(self._serve_peer, [trio.SocketListener(sock)], handler_nursery=nursery)

    def note(self, run_id: str, *, output: bool = False) -> None:
        for connection in self._connections:
            connection.note(run_id, output=output)

    def hang_up(self, reason: str) -> None:
        """The desk is in this process and never begins again."""

    async def _serve_peer(self, stream: trio.SocketStream) -> None:
        async with stream:
            pid, uid = _peer_of(stream)
            if uid not in self._peers or len(self._connections) >= MAX_CONNECTIONS:
                self._turned_away += 1
                self._lines.warn("peer.turned_away", pid=pid, uid=uid, count=self._turned_away)
                return
            connection = _Connection(stream, desk=self._desk, trust=self._trust, refusals=self._refusals, now=self._now)
            self._connections.add(connection)
            self._lines.info("network_part.connected", pid=pid, uid=uid)
            try:
                await connection.serve()
                self._lines.info("network_part.disconnected", pid=pid)
            except* (DeskProtocolError, FrameTooLarge) as errors:
                self._lines.warn("network_part.cut_off", pid=pid, uid=uid, error=str(errors.exceptions[0]))
            except* (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
                self._lines.info("network_part.disconnected", pid=pid)
            except* Exception:  # noqa: BLE001 -- a bug in answering one peer must not end the launcher
                _log.exception("network_part.failed", pid=pid, uid=uid)
            finally:
                self._connections.discard(connection)


class _Connection:
    """One peer, from its connection to its end."""

    def __init__(
        self,
        stream: trio.SocketStream,
        *,
        desk: LocalDesk,
        trust: LauncherTrust,
        refusals: RefusalLog,
        now: Callable[[], float],
    ) -> None:
        self._frames = FrameStream(stream, most=MAX_REQUEST)
        self._desk = desk
        self._trust = trust
        self._refusals = refusals
        self._now = now
        # What is to be told, each run once however much happens to it: bounded by the number of runs.
        self._news: dict[str, bool] = {run.run_id: False for run in desk.known_runs()}
        self._work = trio.Event()
        self._room = trio.Semaphore(_IN_HAND)

    def note(self, run_id: str, *, output: bool) -> None:
        self._news[run_id] = self._news.get(run_id, True) and output
        self._work.set()

    async def serve(self) -> None:
        """Answers until the peer closes.

        Raises:
            DeskProtocolError, FrameTooLarge: the peer does not keep to the protocol.
            trio.BrokenResourceError: the peer is gone. All of these in groups.
        """
        async with trio.open_nursery() as nursery:
            await self._tell_news()
            ready = pb.LauncherReady(
                organization=self._trust.identity.organization,
                node=self._trust.identity.node,
                agent_instance=self._trust.identity.agent_instance,
                key_set_serial=self._trust.keys.serial,
            )
            await self._send(pb.LauncherReply(ready=ready))
            nursery.start_soon(self._keep_telling)
            while (frame := await self._frames.receive()) is not None:
                request = parse(pb.LauncherRequest, frame)
                await self._room.acquire()
                nursery.start_soon(self._answer, request)
            nursery.cancel_scope.cancel(reason="the peer has closed")

    async def _keep_telling(self) -> None:
        while True:
            await self._tell_news()
            self._work = trio.Event()
            await self._work.wait()

    async def _tell_news(self) -> None:
        while self._news:
            run_id = next(iter(self._news))
            output_alone = self._news.pop(run_id)
            # Looked up and sent without a pause in between, so that nothing older follows something newer.
            known = self._desk.known_run(run_id)
            if known is not None:
                run = None if output_alone else run_message(known)
                news = pb.SpoolNews(run=run, run_id=run_id, output_grown=output_alone)
                await self._send(pb.LauncherReply(news=news))

    async def _answer(self, request: pb.LauncherRequest) -> None:
        try:
            try:
                answer = await self._handle(request)
            except OSError as error:
                _log.error("disk.failed", request=request.WhichOneof("request"), error=str(error))
                failure = pb.LauncherFailure(message=error.strerror or str(error))
                answer = pb.LauncherAnswer(failure=failure)
            answer.id = request.id
            await self._send(pb.LauncherReply(answer=answer))
        finally:
            self._room.release()

    async def _handle(self, request: pb.LauncherRequest) -> pb.LauncherAnswer:
        match request.WhichOneof("request"):
            case "take_order":
                return await self._take(request.take_order)
            case "ask_whitelist":
                asked = request.ask_whitelist
                word = await self._desk.ask(asked.command, asked_input(asked))
                return pb.LauncherAnswer(whitelist=whitelist_message(word))
            case "read_spool":
                return await self._read(request.read_spool)
            case "follow_spool":
                await self._desk.follow(request.follow_spool.run_id, followed=request.follow_spool.followed)
                return _done(changed=True)
            case "confirm_run":
                return _done(changed=await self._desk.confirm(request.confirm_run.run_id))
            case "learn_keys":
                return _done(changed=await self._learn(request.learn_keys.signed_key_set))
            case _:
                raise DeskProtocolError("a request that this launcher does not know")

    async def _take(self, request: pb.TakeOrder) -> pb.LauncherAnswer:
        now = believable_time(request.controller_time, self._now())
        verdict = await self._desk.take(signed_order_value(request.order), controller_now=now)
        return pb.LauncherAnswer(verdict=verdict_message(verdict))

    async def _read(self, request: pb.ReadSpool) -> pb.LauncherAnswer:
        limit = min(request.limit, MAX_OUTPUT)
        if request.position < 0 or limit <= 0:
            raise DeskProtocolError("output from nowhere")
        chunks = await self._desk.read_output(request.run_id, request.position, limit)
        output = pb.SpoolOutput(chunks=map(chunk_message, chunks[:MAX_CHUNKS]))
        return pb.LauncherAnswer(output=output)

    async def _learn(self, signed: bytes) -> bool:
        try:
            return await run_in_thread(self._trust.learn, signed)
        except KeySetRefused as error:
            self._refusals.note(f"key_set_{error.refusal.value}", detail=error.message, run_id="")
            return False

    async def _send(self, reply: pb.LauncherReply) -> None:
        await self._frames.send(reply.SerializeToString())


def believable_time(claimed: float, own: float) -> float:
    """The controller's time, as far as somebody who is not trusted may say it.

    On an honest stream it corrects this node's clock. What it may not do is to make an order good again that expired
    long ago: so it is believed within ``MAX_CLOCK_SKEW`` of this node's own clock.
    """
    if not math.isfinite(claimed):
        raise DeskProtocolError("a time that is no number")
    return min(max(claimed, own - MAX_CLOCK_SKEW), own + MAX_CLOCK_SKEW)


def _done(*, changed: bool) -> pb.LauncherAnswer:
    return pb.LauncherAnswer(done=pb.LauncherDone(changed=changed))


def _peer_of(stream: trio.SocketStream) -> tuple[int, int]:
    """Process and user id of who connected, as the kernel noted them then (unix(7), SO_PEERCRED)."""
    credentials = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _ = _UCRED.unpack(credentials)
    return pid, uid
