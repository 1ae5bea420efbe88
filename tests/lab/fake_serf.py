"""A serf cluster in memory that speaks the real RPC protocol, with the real agent's faults, over any trio stream.

For tests on virtual time and for what a real agent cannot be told to do. Queries are delivered at once to the streams
of the nodes they filter for; the size limit is enforced by the exact formula; at the deadline come the junk records
of nobody that a real agent makes up, then ``done``.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import msgpack
import trio
import trio.testing

from shovey_trio.core.serf.records import Member
from shovey_trio.core.serf.size import QueryFrame
from shovey_trio.core.serf.wire import (
    ERROR_AUTH_FAILED,
    ERROR_AUTH_REQUIRED,
    ERROR_HANDSHAKE_REQUIRED,
    ERROR_UNSUPPORTED,
    QUERY_SIZE_LIMIT,
    SHAPES,
    USER_EVENT_SIZE_LIMIT,
    Command,
    MemberEventKind,
    MemberStatus,
)

_READ_SIZE = 65_536
#: Records that one connection may have waiting before the agent drops them without telling, as the real one does.
EVENT_BUFFER: Final = 512
_EVENT_OF_STATUS = {
    MemberStatus.ALIVE: MemberEventKind.JOIN,
    MemberStatus.FAILED: MemberEventKind.FAILED,
    MemberStatus.LEAVING: MemberEventKind.LEAVE,
    MemberStatus.LEFT: MemberEventKind.LEAVE,
    MemberStatus.NONE: MemberEventKind.UPDATE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenQuery:
    """A query that some client sent, for assertions."""

    source: str
    name: str
    payload: bytes
    filter_nodes: tuple[str, ...]
    size: int
    at: float


class FakeSerfCluster:
    """The members and what they tell each other.

    Args:
        names: serf names; all are alive at first.

    Attributes:
        queries: every query accepted, in order.
        user_events: name and payload of every user event, in order.
        query_queue: what ``stats`` says.
        query_size_limit: what the agents are configured with.
        query_timeout: seconds that a query lives which does not say.
        refused: sizes of the queries that were above the limit, in order.
        silent: nodes whose serf agent receives no query.
        junk_records: acks and answers of nobody sent before each ``done``.
    """

    def __init__(self, *names: str) -> None:
        self.members: dict[str, Member] = {}
        self.queries: list[SeenQuery] = []
        self.user_events: list[tuple[str, bytes]] = []
        self.query_queue = 0
        self.query_size_limit = QUERY_SIZE_LIMIT
        self.query_timeout = 5.0
        self.refused: list[int] = []
        self.silent: set[str] = set()
        self.junk_records = 2
        self._agents: dict[str, FakeSerfAgent] = {}
        for number, name in enumerate(names):
            addr = bytes([127, 0, number >> 8 & 255, number & 255])
            self.members[name] = Member(name=name, status=MemberStatus.ALIVE, addr=addr, port=7946)

    def agent(self, name: str, *, auth_key: str | None = None) -> FakeSerfAgent:
        """The agent of one member, the same for the same name; it listens nowhere until it is connected to."""
        if name not in self._agents:
            self._agents[name] = FakeSerfAgent(self, name, auth_key)
        return self._agents[name]

    def set_status(self, name: str, status: MemberStatus) -> None:
        """Changes or adds a member and tells all streams, with the delay of nothing."""
        member = self.members.get(name) or Member(name=name, status=status, addr=bytes(4), port=7946)
        self.members[name] = replace(member, status=status)
        self._tell_members(_EVENT_OF_STATUS[status], self.members[name])

    def reap(self, name: str) -> None:
        """Forgets a member and tells all streams."""
        self._tell_members(MemberEventKind.REAP, self.members.pop(name))

    def send_user_event(self, name: str, payload: bytes) -> None:
        """As if a member had sent it."""
        self.user_events.append((name, payload))
        record = {"Event": "user", "LTime": len(self.user_events), "Name": name, "Payload": payload, "Coalesce": False}
        for agent in self._agents.values():
            agent.tell(f"user:{name}", record)

    def send_query(self, name: str, payload: bytes, *, filter_nodes: tuple[str, ...] = ()) -> None:
        """As if some other member had asked; the answers go nowhere."""
        query = AskedQuery(None, 0, acks=False)
        self.deliver(query, name=name, payload=payload, filter_nodes=filter_nodes)

    def deliver(self, asked: AskedQuery, *, name: str, payload: bytes, filter_nodes: tuple[str, ...]) -> None:
        """For the agents: a query reaches every alive member that its filter lets through."""
        for node, member in self.members.items():
            if (
                member.status is not MemberStatus.ALIVE
                or node in self.silent
                or (filter_nodes and node not in filter_nodes)
            ):
                continue
            if asked.acks:
                asked.record("ack", node, None)
            if node in self._agents:
                self._agents[node].tell_query(asked, name, payload, ltime=len(self.queries))

    def _tell_members(self, kind: MemberEventKind, member: Member) -> None:
        for agent in self._agents.values():
            agent.tell(kind.value, {"Event": kind.value, "Members": [_wire_member(member)]})


class FakeSerfAgent:
    """One agent: connect with ``open_stream``, or give ``serve`` any stream.

    Attributes:
        absent: refuse connections, as when no agent runs.
        stalled: accept everything and answer nothing, as when the process is stopped.
        connects: connections so far.
    """

    def __init__(self, cluster: FakeSerfCluster, name: str, auth_key: str | None) -> None:
        self.cluster = cluster
        self.name = name
        self.auth_key = auth_key
        self.absent = False
        self.stalled = False
        self.connects = 0
        self.sessions: set[_Session] = set()
        self._accept, self._accepted = trio.open_memory_channel[trio.abc.Stream](0)

    async def open_stream(self) -> trio.abc.Stream:
        """Connects; ``run`` must be running.

        Raises:
            OSError: ``absent``.
        """
        if self.absent:
            await trio.lowlevel.checkpoint()
            raise ConnectionRefusedError("the fake agent is absent")
        ours, theirs = trio.testing.memory_stream_pair()
        await self._accept.send(theirs)
        return ours

    async def run(self) -> None:
        """Serves all connections until cancelled."""
        async with trio.open_nursery() as nursery:
            async for stream in self._accepted:
                nursery.start_soon(self.serve, stream)

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Serves one connection until either side ends it."""
        self.connects += 1
        session = _Session(self, stream)
        self.sessions.add(session)
        try:
            await session.run()
        finally:
            self.sessions.discard(session)

    def drop(self) -> None:
        """Ends all connections, as when the agent dies; what they had asked is lost."""
        for session in tuple(self.sessions):
            session.end()

    def send_garbage(self, data: bytes) -> None:
        """Puts these bytes on every connection."""
        for session in self.sessions:
            session.write(data)

    def tell(self, filter_name: str, record: Mapping[str, Any]) -> None:
        """Sends a record to each stream whose filter wants it."""
        for session in self.sessions:
            session.tell(filter_name, record)

    def tell_query(self, asked: AskedQuery, name: str, payload: bytes, *, ltime: int) -> None:
        """Delivers a query to each stream whose filter wants it; the first to respond answers."""
        for session in self.sessions:
            if session.wants(f"query:{name}"):
                query_id = session.remember(asked)
                record = {"Event": "query", "ID": query_id, "LTime": ltime, "Name": name, "Payload": payload}
                session.tell(f"query:{name}", record)


class AskedQuery:
    """Where the acks and answers of one query go until its time is over."""

    def __init__(self, session: _Session | None, seq: int, *, acks: bool) -> None:
        self.session = session
        self.seq = seq
        self.acks = acks
        self.over = False
        self._answered: set[str] = set()

    def answer(self, node: str, payload: bytes) -> str:
        if self.over:
            return "No pending queries matching ID"
        if node in self._answered:
            return "failed to respond to key query: response already sent"
        self._answered.add(node)
        self.record("response", node, payload)
        return ""

    def record(self, kind: str, node: str, payload: bytes | None) -> None:
        if self.session is not None and not self.over:
            self.session.send(self.seq, "", {"Type": kind, "From": node, "Payload": payload})


class _Session:
    def __init__(self, agent: FakeSerfAgent, stream: trio.abc.Stream) -> None:
        self._agent = agent
        self._stream = stream
        self._unpacker = msgpack.Unpacker(raw=False, unicode_errors="surrogateescape")
        self._write, self._to_write = trio.open_memory_channel[bytes](EVENT_BUFFER)
        self._written = trio.Event()
        self._scope = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self._greeted = False
        self._authenticated = agent.auth_key is None
        self._streams: dict[int, frozenset[str]] = {}
        self._received: list[AskedQuery] = []

    async def run(self) -> None:
        with self._scope:
            async with self._stream, trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._run_writer)
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await self._read()
                self._write.close()
                await self._written.wait()
                nursery.cancel_scope.cancel(reason="fake serf connection ended")

    def end(self) -> None:
        self._scope.cancel(reason="fake serf agent dropped the connection")

    def wants(self, filter_name: str) -> bool:
        kind = filter_name.partition(":")[0]
        return any(filters & {"*", kind, filter_name} for filters in self._streams.values())

    def remember(self, asked: AskedQuery) -> int:
        self._received.append(asked)
        return len(self._received)

    def tell(self, filter_name: str, record: Mapping[str, Any]) -> None:
        kind = filter_name.partition(":")[0]
        for seq, filters in self._streams.items():
            if filters & {"*", kind, filter_name}:
                self.send(seq, "", record)

    def send(self, seq: int, error: str, body: Mapping[str, Any] | None = None) -> None:
        data = _pack({"Error": error, "Seq": seq})
        self.write(data if body is None else data + _pack(body))

    def write(self, data: bytes) -> None:
        try:
            self._write.send_nowait(data)
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            return  # the real agent drops it without telling

    async def _run_writer(self) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in self._to_write:
                if self._agent.stalled:
                    await trio.sleep_forever()
                await self._stream.send_all(data)
        self._written.set()

    async def _read(self) -> None:
        while True:
            header = await self._next()
            if header is None:
                return
            command, seq = str(header.get("Command", "")), int(header.get("Seq", 0))
            if not self._greeted and command != Command.HANDSHAKE:
                self.send(seq, ERROR_HANDSHAKE_REQUIRED)
                return
            if not self._authenticated and command not in (Command.HANDSHAKE, Command.AUTH):
                self.send(seq, ERROR_AUTH_REQUIRED)  # and a body, if there is one, is taken for a header
                continue
            if command not in {known.value for known in Command}:
                if self._authenticated:
                    self.send(seq, ERROR_UNSUPPORTED)
                return
            body = await self._next() if SHAPES[Command(command)].sends_body else {}
            if body is None:
                return
            self._carry_out(Command(command), seq, body)

    async def _next(self) -> dict[str, Any] | None:
        while True:
            try:
                item: dict[str, Any] = self._unpacker.unpack()
            except msgpack.OutOfData:
                if self._agent.stalled:
                    await trio.sleep_forever()
                data = await self._stream.receive_some(_READ_SIZE)
                if not data:
                    return None
                self._unpacker.feed(bytes(data))
            else:
                return item

    def _carry_out(self, command: Command, seq: int, body: Mapping[str, Any]) -> None:
        cluster = self._agent.cluster
        match command:
            case Command.HANDSHAKE:
                version_ok = body.get("Version") == 1
                self._greeted = version_ok
                self.send(seq, "" if version_ok else "Unsupported IPC version")
            case Command.AUTH:
                self._authenticated = body.get("AuthKey") == self._agent.auth_key
                self.send(seq, "" if self._authenticated else ERROR_AUTH_FAILED)
            case Command.MEMBERS:
                self.send(seq, "", {"Members": [_wire_member(member) for member in cluster.members.values()]})
            case Command.STATS:
                numbers = {
                    "members": len(cluster.members),
                    "query_queue": cluster.query_queue,
                    "query_time": len(cluster.queries) + 1,
                }
                serf = {name: str(number) for name, number in numbers.items()}
                self.send(seq, "", {"agent": {"name": self._agent.name}, "serf": serf, "tags": {}})
            case Command.STREAM:
                self._streams[seq] = frozenset(str(body.get("Type") or "*").split(","))
                self.send(seq, "")
            case Command.EVENT:
                payload = bytes(body["Payload"])
                if len(body["Name"]) + len(payload) > USER_EVENT_SIZE_LIMIT:
                    self.send(seq, "user event exceeds configured limit of 512 bytes before encoding")
                    return
                self.send(seq, "")
                cluster.send_user_event(body["Name"], payload)
            case Command.RESPOND:
                index = int(body["ID"]) - 1
                known = 0 <= index < len(self._received)
                answer = self._received[index].answer(self._agent.name, bytes(body["Payload"])) if known else None
                self.send(seq, "No pending queries matching ID" if answer is None else answer)
            case Command.QUERY:
                self._on_query(seq, body)
            case _ if SHAPES[command].reply_body:
                self.send(seq, "not in the fake", {})
            case _:
                self.send(seq, "not in the fake")

    def _on_query(self, seq: int, body: Mapping[str, Any]) -> None:
        cluster = self._agent.cluster
        name, payload = str(body["Name"]), bytes(body["Payload"] or b"")
        filter_nodes = tuple(body.get("FilterNodes") or ())
        timeout = int(body.get("Timeout") or 0) / 1e9 or cluster.query_timeout
        frame = QueryFrame(
            source_node=self._agent.name, query_name=name, timeout=timeout, ltime=len(cluster.queries) + 1
        )
        size = frame.size(len(payload), filter_nodes, body.get("FilterTags") or {})
        if size > cluster.query_size_limit:
            cluster.refused.append(size)
            self.send(seq, f"query exceeds limit of {cluster.query_size_limit} bytes")
            return
        self.send(seq, "")
        cluster.queries.append(
            SeenQuery(
                source=self._agent.name,
                name=name,
                payload=payload,
                filter_nodes=filter_nodes,
                size=size,
                at=trio.current_time(),
            )
        )
        asked = AskedQuery(self, seq, acks=bool(body.get("RequestAck")))
        cluster.deliver(asked, name=name, payload=payload, filter_nodes=filter_nodes)
        assert self._nursery is not None
        self._nursery.start_soon(self._finish_query, asked, timeout)

    async def _finish_query(self, asked: AskedQuery, lifetime: float) -> None:
        await trio.sleep(lifetime)
        for _ in range(self._agent.cluster.junk_records):
            asked.record("ack" if asked.acks else "response", "", None)
        asked.record("done", "", None)
        asked.over = True


def _wire_member(member: Member) -> dict[str, Any]:
    return {
        "Name": member.name,
        "Addr": member.addr,
        "Port": member.port,
        "Tags": dict(member.tags),
        "Status": member.status.value,
    }


def _pack(value: Mapping[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True, unicode_errors="surrogateescape")
    return packed
