"""Serf's RPC protocol as a pure codec: commands in, bytes out; bytes in, typed events out.

It never blocks and knows no loop. ``send`` turns a command into bytes; ``receive_data`` takes what the socket gave, in
pieces of any size; ``next_event`` is called until it answers ``NEED_DATA``.

The rules it holds, because the stream of msgpack objects is not self-delimiting:

* An incoming object is a header unless a body is due. Whether one is due depends on the command sent under the header's
  Seq and on the header's Error: ``join`` and the key commands send their body with an error too, ``Authentication
  required`` never has one. So a header with an unknown Seq is the end of the connection: nobody knows what follows.
* A Seq lives until its reply; of a query until ``done``, which always comes and is always last; of a stream or monitor
  until the connection ends, for records may still be under way after ``stop``.
* The body of a command that is refused for want of authentication is read by the agent as a header, which is answered
  by the same error under the same Seq. That echo is ignored.
* At a query's deadline the agent reads closed channels and reports acks and answers of nobody (empty From). Ignored.
* Text arrives as *str*, bytes as *bin*, but an empty value of either is nil. Names are arbitrary bytes, hence
  surrogateescape. There is no frame limit in the protocol, hence ``max_object_size`` here.

After a ``RemoteProtocolError`` the connection is of no use: every later call raises it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from itertools import count
from typing import Any, Final, TypeAlias

import msgpack

from shovey_trio.core.errors import Code, Exit, ShoveyError
from shovey_trio.core.serf.records import (
    LogLine,
    MembersChanged,
    QueryAcked,
    QueryAnswered,
    QueryDone,
    QueryReceived,
    RecordMalformed,
    UserEventReceived,
    parse_event_record,
    parse_log_record,
    parse_query_record,
)
from shovey_trio.core.serf.wire import ERROR_AUTH_REQUIRED, GATE_ERRORS, SHAPES, Command, Records

#: 10,000 members are about 2.5 MB in one object; a sender that goes on beyond this is no serf agent.
MAX_OBJECT_SIZE: Final = 32 * 1024 * 1024
#: msgpack reserves an array's slots before it has seen its elements, so the count needs a bound of its own.
_MAX_ELEMENTS: Final = 262_144


class RemoteProtocolError(ShoveyError):
    """The peer sent what no serf agent sends; close the connection."""

    reason, code, http, exit = "SERF_PROTOCOL", Code.UNAVAILABLE, 503, Exit.BUSY


class LocalProtocolError(Exception):
    """Our own bug: a body where none may be, none where one must be, or data after the end."""


class NeedData(Enum):
    """The type of ``NEED_DATA``."""

    NEED_DATA = "need data"


NEED_DATA: Final = NeedData.NEED_DATA


class IgnoredReason(StrEnum):
    """Why an object of the peer has no meaning."""

    EMPTY_SENDER = "empty_sender"
    UNAUTHENTICATED_ECHO = "unauthenticated_echo"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The answer to a command; ``error`` is empty when it succeeded, ``body`` is None when the command has none."""

    seq: int
    command: Command
    error: str
    body: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ignored:
    """An object that was understood and means nothing."""

    seq: int
    why: IgnoredReason


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionEnded:
    """The peer closed the stream between two objects."""


Event: TypeAlias = (
    Reply
    | Ignored
    | ConnectionEnded
    | QueryAcked
    | QueryAnswered
    | QueryDone
    | QueryReceived
    | UserEventReceived
    | MembersChanged
    | LogLine
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Due:
    """The body that must come next."""

    seq: int
    error: str
    pending: _Pending


@dataclass(slots=True)
class _Pending:
    command: Command
    replied: bool = False
    echo: bool = False


class ClientCodec:
    """One connection's state, from the client's side.

    Args:
        max_object_size: bytes that one msgpack object may have.
        first_seq: Seq of the first command; they count up from there.
    """

    def __init__(self, *, max_object_size: int = MAX_OBJECT_SIZE, first_seq: int = 1) -> None:
        self._max_object_size = max_object_size
        self._seqs = count(first_seq)
        self._pending: dict[int, _Pending] = {}
        self._due: _Due | None = None
        self._fed = 0
        self._object_start = 0
        self._ended = False
        self._broken: RemoteProtocolError | None = None
        self._unpacker = msgpack.Unpacker(
            raw=False,
            unicode_errors="surrogateescape",
            max_buffer_size=2 * max_object_size,
            max_array_len=_MAX_ELEMENTS,
            max_map_len=_MAX_ELEMENTS,
        )

    @property
    def open_seqs(self) -> int:
        """How many Seqs still expect something; streams count until the connection ends."""
        return len(self._pending)

    def send(self, command: Command, body: Mapping[str, Any] | None = None) -> tuple[int, bytes]:
        """Encodes a command and remembers what must come back.

        Returns:
            The Seq, from a counter, and the bytes to write in one piece.

        Raises:
            LocalProtocolError: ``body`` is given for a bodyless command, or missing.
            RemoteProtocolError: the connection is already broken.
        """
        if self._broken is not None:
            raise self._broken
        if SHAPES[command].sends_body != (body is not None):
            raise LocalProtocolError(f"{command}: {'no body may be sent' if body is not None else 'body missing'}")
        seq = next(self._seqs)
        data = _pack({"Command": command.value, "Seq": seq})
        if body is not None:
            data += _pack(body)
        self._pending[seq] = _Pending(command)
        return seq, data

    def receive_data(self, data: bytes) -> None:
        """Takes bytes from the peer; empty bytes say that it closed its side.

        Raises:
            RemoteProtocolError: more is buffered than two objects may have.
            LocalProtocolError: data after the end.
        """
        if self._broken is not None:
            raise self._broken
        if self._ended:
            raise LocalProtocolError("data after the end of the stream")
        if not data:
            self._ended = True
            return
        try:
            self._unpacker.feed(data)
        except msgpack.BufferFull as exc:
            raise self._break("more buffered than an object may have", exc) from exc
        self._fed += len(data)

    def next_event(self) -> Event | NeedData:
        """The next event, or ``NEED_DATA``. After ``ConnectionEnded`` there is no other.

        Raises:
            RemoteProtocolError: garbage, an oversized object, an unknown Seq, or the end inside an object.
        """
        if self._broken is not None:
            raise self._broken
        while True:
            item = self._next_object()
            if item is NEED_DATA:
                return self._at_end() if self._ended else NEED_DATA
            if not isinstance(item, dict):
                raise self._break(f"expected a map, got {type(item).__name__}")
            event = self._on_header(item) if self._due is None else self._on_body(self._due, item)
            if event is not None:
                return event

    def _next_object(self) -> Any:
        try:
            item = self._unpacker.unpack()
        except msgpack.OutOfData:
            if self._fed - self._object_start > self._max_object_size:
                raise self._break("object larger than allowed") from None
            return NEED_DATA
        except (ValueError, TypeError, msgpack.UnpackException) as exc:
            raise self._break("not msgpack", exc) from exc
        self._object_start = self._unpacker.tell()
        return item

    def _at_end(self) -> ConnectionEnded:
        if self._due is not None or self._object_start != self._fed:
            raise self._break("the stream ended inside a message")
        return ConnectionEnded()

    def _on_header(self, header: dict[Any, Any]) -> Event | None:
        seq, error = header.get("Seq"), header.get("Error")
        if type(seq) is not int or not isinstance(error, str):
            raise self._break("reply header without Seq and Error")
        pending = self._pending.get(seq)
        if pending is None:
            raise self._break(f"reply to unknown Seq {seq}")
        if pending.echo and error == ERROR_AUTH_REQUIRED:
            del self._pending[seq]
            return Ignored(seq=seq, why=IgnoredReason.UNAUTHENTICATED_ECHO)
        shape = SHAPES[pending.command]
        if pending.replied or (shape.reply_body and error not in GATE_ERRORS):
            self._due = _Due(seq=seq, error=error, pending=pending)
            return None
        return self._reply(seq, pending, error, None)

    def _on_body(self, due: _Due, body: dict[Any, Any]) -> Event:
        self._due = None
        if not due.pending.replied:
            return self._reply(due.seq, due.pending, due.error, body)
        try:
            match SHAPES[due.pending.command].records:
                case Records.EVENTS:
                    return parse_event_record(due.seq, body)
                case Records.LOG:
                    return parse_log_record(due.seq, body)
                case _:
                    record = parse_query_record(due.seq, body)
        except RecordMalformed as exc:
            raise self._break(str(exc), exc) from exc
        if record is None:
            return Ignored(seq=due.seq, why=IgnoredReason.EMPTY_SENDER)
        if isinstance(record, QueryDone):
            del self._pending[due.seq]
        return record

    def _reply(self, seq: int, pending: _Pending, error: str, body: Mapping[str, Any] | None) -> Reply:
        shape = SHAPES[pending.command]
        if error == ERROR_AUTH_REQUIRED and shape.sends_body:
            pending.echo = True
        elif not error and shape.records is not Records.NONE:
            pending.replied = True
        else:
            del self._pending[seq]
        return Reply(seq=seq, command=pending.command, error=error, body=body)

    def _break(self, message: str, cause: BaseException | None = None) -> RemoteProtocolError:
        error = RemoteProtocolError(f"serf RPC: {message}", cause=repr(cause) if cause is not None else message)
        self._broken = error
        return error


def _pack(value: Mapping[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True, unicode_errors="surrogateescape")
    return packed
