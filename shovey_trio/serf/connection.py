"""One RPC connection to a serf agent: a trio stream around the codec.

Two tasks own the stream. The reader only reads: it hands a reply to the one who waits for it, a query's record to the
query's progress and an event to the subscription's channel, and never waits for any of them, because an agent that
cannot write drops events without telling (``SerfConsumerTooSlow`` tells). The writer only writes, so that cancelling
the one who sent a command cannot leave half of it on the wire.

Whatever breaks the connection breaks it for everybody at once: all that wait get the same typed error.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import trio

from shovey_trio.core.errors import ShoveyError
from shovey_trio.core.serf.doorbell_plan import PlannedQuery
from shovey_trio.core.serf.ipc import (
    NEED_DATA,
    ClientCodec,
    ConnectionEnded,
    Event,
    Ignored,
    RemoteProtocolError,
    Reply,
)
from shovey_trio.core.serf.records import (
    LogLine,
    Member,
    MembersChanged,
    QueryAcked,
    QueryAnswered,
    QueryDone,
    QueryReceived,
    RecordMalformed,
    UserEventReceived,
    parse_members,
)
from shovey_trio.core.serf.size import timeout_ns
from shovey_trio.core.serf.wire import ERROR_AUTH_FAILED, ERROR_AUTH_REQUIRED, IPC_VERSION, Command
from shovey_trio.serf.errors import SerfAuthFailed, SerfConnectionLost, SerfConsumerTooSlow, SerfRefused
from shovey_trio.serf.progress import QueryProgress

StreamRecord: TypeAlias = QueryReceived | UserEventReceived | MembersChanged

_READ_SIZE = 65_536
# Commands waiting for the writer, at most about 2 KiB each. Beyond it their senders wait.
_OUTBOX = 64
# Records of about 1 KiB, a batch of members more: some 4 MiB that we are behind before we give the connection up. It is
# about as much again as what the agent itself buffers for us.
_SUBSCRIPTION = 4096


class Subscription:
    """The records of one ``stream`` command, in order. Iterating ends only by raising what broke the connection."""

    def __init__(self, connection: SerfConnection, receive: trio.MemoryReceiveChannel[StreamRecord]) -> None:
        self._connection = connection
        self._receive = receive

    def close(self) -> None:
        """Says that nobody reads on; what still comes is dropped. Idempotent."""
        self._receive.close()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> StreamRecord:
        """The next record; no record is lost by cancelling.

        Raises:
            SerfConnectionLost: no more will come.
            RemoteProtocolError: the agent sent garbage.
        """
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            raise self._connection.failure() from None


class SerfConnection:
    """A connection after handshake and authentication; made by ``open_connection``."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._codec = ClientCodec()
        self._failure: ShoveyError | None = None
        self._outbox, self._to_write = trio.open_memory_channel[_Request](_OUTBOX)
        self._requests: set[_Request] = set()
        self._waiting: dict[int, _Request] = {}
        self._subscriptions: dict[int, trio.MemorySendChannel[StreamRecord]] = {}
        self._queries: dict[int, QueryProgress] = {}

    @property
    def broken(self) -> bool:
        """Whether every further command would fail."""
        return self._failure is not None

    def failure(self) -> ShoveyError:
        """What broke the connection."""
        return self._failure or SerfConnectionLost("the connection to serf was closed")

    def fail(self, error: ShoveyError) -> None:
        """Breaks the connection; everybody who waits gets ``error``. The first error stays."""
        if self._failure is not None:
            return
        self._failure = error
        for request in self._requests:
            request.answered.set()
        self._waiting.clear()
        self._to_write.close()
        for channel in self._subscriptions.values():
            channel.close()
        for progress in tuple(self._queries.values()):
            progress.settle()
        self._queries.clear()

    async def command(self, command: Command, body: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """Sends a command and returns the body of its reply (empty if it has none).

        Cancelling leaves the connection usable; the command may or may not be carried out.

        Raises:
            SerfRefused: the agent answered with an error.
            SerfConnectionLost: the connection broke before the answer.
            RemoteProtocolError: the agent sent garbage.
            SerfAuthFailed: the agent wants (another) key.
        """
        return await self._ask(_Request(command, body))

    async def members(self) -> tuple[Member, ...]:
        """All members that the agent knows, the failed and left ones included.

        Raises:
            As ``command``.
        """
        try:
            return parse_members(await self.command(Command.MEMBERS))
        except RecordMalformed as exc:
            error = RemoteProtocolError(f"serf RPC: members: {exc}")
            self.fail(error)
            raise error from exc

    async def stats(self) -> Mapping[str, Mapping[str, str]]:
        """The agent's figures, all of them text: ``agent.name``, ``serf.query_queue``, ``serf.query_time`` …

        Raises:
            As ``command``.
        """
        body = await self.command(Command.STATS)
        return {group: values for group, values in body.items() if isinstance(values, Mapping)}

    async def subscribe(self, filters: str) -> Subscription:
        """Starts a stream of events; what happens from the agent's reply on is in it.

        The subscription holds 4,096 records; when it is full the connection breaks with ``SerfConsumerTooSlow``.

        Args:
            filters: comma list of serf's filters, such as ``serf_wire.STREAM_MEMBERS``.

        Raises:
            As ``command``.
        """
        send, receive = trio.open_memory_channel[StreamRecord](_SUBSCRIPTION)
        try:
            await self._ask(_Request(Command.STREAM, {"Type": filters}, subscription=send))
        except BaseException:
            receive.close()
            raise
        return Subscription(self, receive)

    async def query(self, query: PlannedQuery, progress: QueryProgress) -> None:
        """Sends a query; returns when the agent has accepted it. Its records go to ``progress`` until it is settled.

        Cancelled, the query may be under way, and then its records still go to ``progress``; if not, it is settled.

        Raises:
            As ``command``.
        """
        body: dict[str, Any] = {
            "FilterNodes": list(query.filter_nodes),
            "FilterTags": dict(query.filter_tags),
            "RequestAck": query.request_ack,
            "RelayFactor": 0,
            "Timeout": timeout_ns(query.timeout),
            "Name": query.name,
            "Payload": query.payload,
        }
        await self._ask(_Request(Command.QUERY, body, progress=progress))

    async def respond(self, query: QueryReceived, payload: bytes) -> None:
        """Answers a query that came on this very connection.

        Raises:
            SerfRefused: answered already, too late, or too large.
            As ``command``.
        """
        await self.command(Command.RESPOND, {"ID": query.query_id, "Payload": payload})

    async def send_user_event(self, name: str, payload: bytes, *, coalesce: bool) -> None:
        """Sends a user event to the whole cluster, ourselves included.

        Raises:
            SerfRefused: larger than 512 bytes encoded.
            As ``command``.
        """
        await self.command(Command.EVENT, {"Name": name, "Payload": payload, "Coalesce": coalesce})

    async def handshake(self, auth_key: str | None) -> None:
        """Opens the protocol; for ``open_connection``.

        Raises:
            SerfAuthFailed: the agent wants (another) key.
            As ``command``.
        """
        await self.command(Command.HANDSHAKE, {"Version": IPC_VERSION})
        if auth_key is not None:
            await self.command(Command.AUTH, {"AuthKey": auth_key})

    async def run_reader(self) -> None:
        """Reads until the connection breaks; for ``open_connection``."""
        try:
            while True:
                self._codec.receive_data(bytes(await self._stream.receive_some(_READ_SIZE)))
                while (event := self._codec.next_event()) is not NEED_DATA:
                    self._on_event(event)
                    if self._failure is not None:
                        return
        except RemoteProtocolError as exc:
            self.fail(exc)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            self.fail(SerfConnectionLost(f"the connection to serf broke: {exc}"))

    async def run_writer(self) -> None:
        """Writes until the connection breaks; for ``open_connection``."""
        try:
            async for request in self._to_write:
                if request not in self._requests:
                    continue
                request.written = True
                seq, data = self._codec.send(request.command, request.body)
                self._waiting[seq] = request
                if request.progress is not None:
                    self._queries[seq] = request.progress
                await self._stream.send_all(data)
        except RemoteProtocolError as exc:
            self.fail(exc)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            self.fail(SerfConnectionLost(f"the connection to serf broke: {exc}"))

    async def _ask(self, request: _Request) -> Mapping[str, Any]:
        if self._failure is not None:
            await trio.lowlevel.checkpoint()
            raise self._failure
        self._requests.add(request)
        try:
            await self._outbox.send(request)
            await request.answered.wait()
        except trio.BrokenResourceError:
            raise self.failure() from None
        finally:
            # If it still lies in the outbox, nobody wants it sent any more.
            self._requests.discard(request)
            if request.progress is not None and not request.written:
                request.progress.settle()
        if request.reply is None:
            raise self.failure()
        match request.reply.error:
            case "":
                return request.reply.body or {}
            case error if error in (ERROR_AUTH_REQUIRED, ERROR_AUTH_FAILED):
                raise SerfAuthFailed(f"serf: {error}")
            case error:
                raise SerfRefused(f"serf refused {request.command}: {error.strip()}", error=error.strip())

    def _on_event(self, event: Event) -> None:
        match event:
            case Reply():
                self._on_reply(event)
            case QueryAcked() | QueryAnswered() | QueryDone():
                progress = self._queries.get(event.seq)
                if progress is None:
                    return
                progress.on_record(event)
                if progress.settled:
                    del self._queries[event.seq]
            case QueryReceived() | UserEventReceived() | MembersChanged():
                try:
                    self._subscriptions[event.seq].send_nowait(event)
                except trio.WouldBlock:
                    self.fail(SerfConsumerTooSlow(f"{_SUBSCRIPTION} events of serf were waiting to be handled"))
                except trio.BrokenResourceError:
                    return  # the subscriber is gone, its stream goes on until the connection ends
            case Ignored() | LogLine():
                return
            case ConnectionEnded():
                self.fail(SerfConnectionLost("serf closed the connection"))

    def _on_reply(self, reply: Reply) -> None:
        request = self._waiting.pop(reply.seq)
        request.reply = reply
        request.answered.set()
        if reply.error:
            progress = self._queries.pop(reply.seq, None)
            if progress is not None:
                progress.settle()
        elif request.subscription is not None:
            self._subscriptions[reply.seq] = request.subscription


@asynccontextmanager
async def open_connection(stream: trio.abc.Stream, *, auth_key: str | None = None) -> AsyncIterator[SerfConnection]:
    """Speaks serf RPC on ``stream``, which it closes at the end: handshake and authentication are done when it yields.

    Errors of the body come out as they are, not in an exception group.

    Args:
        stream: connected to the agent's RPC port.
        auth_key: the agent's ``rpc_auth``, or None.

    Raises:
        SerfAuthFailed: the key is wrong. Without a key, an agent that wants one says so at the first command.
        SerfConnectionLost: the peer went away.
        RemoteProtocolError: the peer is no serf agent.
    """
    connection = SerfConnection(stream)
    failure: Exception | None = None
    async with stream, trio.open_nursery() as nursery:
        nursery.start_soon(connection.run_reader)
        nursery.start_soon(connection.run_writer)
        try:
            await connection.handshake(auth_key)
            yield connection
        except Exception as exc:  # noqa: BLE001 - raised again below, outside the nursery that would wrap it
            failure = exc
        finally:
            connection.fail(SerfConnectionLost("the connection to serf was closed"))
            nursery.cancel_scope.cancel(reason="serf connection closed")
    if failure is not None:
        raise failure


class _Request:
    """A command on its way, and what came of it."""

    __slots__ = ("answered", "body", "command", "progress", "reply", "subscription", "written")

    def __init__(
        self,
        command: Command,
        body: Mapping[str, Any] | None,
        *,
        subscription: trio.MemorySendChannel[StreamRecord] | None = None,
        progress: QueryProgress | None = None,
    ) -> None:
        self.command = command
        self.body = body
        self.subscription = subscription
        self.progress = progress
        self.answered = trio.Event()
        self.reply: Reply | None = None
        self.written = False
