"""What a serf agent tells unasked: the records of streams and queries, parsed from their maps into values.

A record that has not the shape of serf's source is ``RecordMalformed``; unknown keys are ignored, a missing key or nil
is the zero value, as in Go.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar

from shovey_trio.core.serf.wire import MemberEventKind, MemberStatus

_T = TypeVar("_T")
_MEMBER_EVENTS = {kind.value: kind for kind in MemberEventKind}
_STATUSES = {status.value: status for status in MemberStatus}


class RecordMalformed(ValueError):
    """A record without the fields of its type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One member of the cluster as an agent sees it; ``addr`` is packed (4 or 16 bytes), ``port`` the gossip port."""

    name: str
    status: MemberStatus
    addr: bytes = b""
    port: int = 0
    tags: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryAcked:
    """The serf agent of ``node`` has the query. It says nothing of the program behind it."""

    seq: int
    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryAnswered:
    """A program on ``node`` responded."""

    seq: int
    node: str
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryDone:
    """The query's time is over; the last record of its Seq."""

    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryReceived:
    """Somebody asks; ``query_id`` belongs to this connection and is valid until the query's deadline."""

    seq: int
    query_id: int
    ltime: int
    name: str
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class UserEventReceived:
    """A user event of any member, our own included."""

    seq: int
    ltime: int
    name: str
    payload: bytes
    coalesce: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MembersChanged:
    """A batch of members, 1-3 s late; updates are repeated in later batches."""

    seq: int
    kind: MemberEventKind
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """A line of the agent's log, from ``monitor``."""

    seq: int
    text: str


def parse_event_record(seq: int, body: Mapping[str, Any]) -> QueryReceived | UserEventReceived | MembersChanged:
    """A record of ``stream``.

    Raises:
        RecordMalformed: unknown event or wrong types.
    """
    kind = _get(body, "Event", str, "")
    if kind in _MEMBER_EVENTS:
        return MembersChanged(seq=seq, kind=_MEMBER_EVENTS[kind], members=parse_members(body))
    ltime, name, payload = _get(body, "LTime", int, 0), _get(body, "Name", str, ""), _payload(body)
    match kind:
        case "query":
            query_id = _get(body, "ID", int, 0)
            return QueryReceived(seq=seq, query_id=query_id, ltime=ltime, name=name, payload=payload)
        case "user":
            coalesce = _get(body, "Coalesce", bool, False)
            return UserEventReceived(seq=seq, ltime=ltime, name=name, payload=payload, coalesce=coalesce)
        case _:
            raise RecordMalformed(f"unknown event {kind[:40]!r}")


def parse_query_record(seq: int, body: Mapping[str, Any]) -> QueryAcked | QueryAnswered | QueryDone | None:
    """A record of ``query``; None for the acks and answers of nobody that an agent makes up at the deadline.

    Raises:
        RecordMalformed: unknown type or wrong types.
    """
    node = _get(body, "From", str, "")
    match _get(body, "Type", str, ""):
        case "done":
            return QueryDone(seq=seq)
        case "ack":
            return QueryAcked(seq=seq, node=node) if node else None
        case "response":
            return QueryAnswered(seq=seq, node=node, payload=_payload(body)) if node else None
        case other:
            raise RecordMalformed(f"unknown query record {other[:40]!r}")


def parse_log_record(seq: int, body: Mapping[str, Any]) -> LogLine:
    """A record of ``monitor``.

    Raises:
        RecordMalformed: wrong types.
    """
    return LogLine(seq=seq, text=_get(body, "Log", str, ""))


def parse_members(body: Mapping[str, Any]) -> tuple[Member, ...]:
    """The members of a ``members`` reply or of a member event, in the agent's order.

    Raises:
        RecordMalformed: not a list of members.
    """
    return tuple([_member(item) for item in _get(body, "Members", list, [])])


def _member(item: object) -> Member:
    if not isinstance(item, dict):
        raise RecordMalformed("a member is not a map")
    status = _STATUSES.get(_get(item, "Status", str, ""))
    name = _get(item, "Name", str, "")
    if status is None or not name:
        raise RecordMalformed("a member without name or with unknown status")
    tags = _get(item, "Tags", dict, {})
    if not all(isinstance(key, str) and isinstance(value, str) for key, value in tags.items()):
        raise RecordMalformed("a tag is not text")
    return Member(
        name=name,
        status=status,
        addr=_get(item, "Addr", bytes, b""),
        port=_get(item, "Port", int, 0),
        tags=MappingProxyType(tags),
    )


def _payload(body: Mapping[str, Any]) -> bytes:
    payload = body.get("Payload")
    if isinstance(payload, str):
        # An agent built with the old msgpack specification has one raw type for both.
        return payload.encode("utf-8", "surrogateescape")
    return _get(body, "Payload", bytes, b"")


def _get(body: Mapping[str, Any], key: str, kind: type[_T], zero: _T) -> _T:
    value = body.get(key)
    if value is None:
        return zero
    if type(value) is not kind:
        raise RecordMalformed(f"{key} is a {type(value).__name__}")
    return value
