"""How large a serf query is on the wire, exactly, before it is sent.

An agent refuses a query above its limit (1,024 bytes unless configured), and above about 1,366 bytes accepts it and
never sends it, so everybody who builds queries asks here first. The raw query is one type byte and an old-specification
msgpack map with all field names (serf's ``messageQuery``). The formula is exact to the byte; only the Lamport time is
not known beforehand and is assumed to be at its largest (``LTIME_WORST``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from shovey_trio.core.errors import Code, Exit, ShoveyError
from shovey_trio.core.serf.wire import QUERY_SIZE_LIMIT

#: A cluster that asks once a second needs 136 years for a clock above it.
LTIME_WORST: Final = 2**32 - 1

# One type byte, one map byte and eleven field names with their length bytes.
_FIXED = 79
_QUERY_ID = 5
_ADDR = {False: 5, True: 17}  # IPv4, IPv6
_PORT = 3
_NO_TAGS: Mapping[str, str] = MappingProxyType({})


class NameDoesNotFit(ShoveyError):
    """A node name is so long that not even it alone fits beside the payload; ``node`` names it."""

    reason, code, http, exit = "NODE_NAME_TOO_LONG", Code.INVALID_ARGUMENT, 400, Exit.USAGE


class NameFault(StrEnum):
    """What is wrong with a node's name in serf."""

    EMPTY = "empty"
    NOT_TEXT = "not_text"
    NO_ORGANIZATION = "no_organization"
    TOO_LONG = "too_long"


@dataclass(frozen=True, slots=True, kw_only=True)
class NameProblem:
    """A node that no doorbell can reach, and why; ``excess`` is by how many bytes its query is too large."""

    name: str
    fault: NameFault
    excess: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryFrame:
    """All of a query except its payload and filters.

    Attributes:
        source_node: serf name of the agent that sends it (every query carries it).
        query_name: name of the query.
        timeout: seconds; an agent takes nanoseconds.
        ltime: Lamport time at sending; the default is the upper bound.
        ipv6: the source agent advertises an IPv6 address.
        relay_factor: as in the query command.
    """

    source_node: str
    query_name: str
    timeout: float
    ltime: int = LTIME_WORST
    ipv6: bool = False
    relay_factor: int = 0

    def size(self, payload_size: int, nodes: Sequence[str] = (), tags: Mapping[str, str] = _NO_TAGS) -> int:
        """Raw bytes of the encoded query.

        Args:
            payload_size: bytes of the payload.
            nodes: ``FilterNodes``; empty is no filter.
            tags: ``FilterTags``, tag to regular expression.
        """
        return (
            _FIXED
            + _uint(self.ltime)
            + _QUERY_ID
            + _ADDR[self.ipv6]
            + _PORT
            + raw_size(byte_length(self.source_node))
            + self._filters(nodes, tags)
            + 1  # flags: at most ack | no-broadcast
            + _uint(self.relay_factor)
            + _uint(timeout_ns(self.timeout))
            + raw_size(byte_length(self.query_name))
            + raw_size(payload_size)
        )

    def room(self, limit: int) -> int:
        """The largest payload of an unfiltered query of at most ``limit`` bytes; negative when not even none fits."""
        room = limit - self.size(0) + 1
        # Lengths from 32 on take three bytes instead of one, so 32 and 33 bytes of room hold 31 bytes.
        return room - 1 if room <= 32 else max(31, room - 3)

    @staticmethod
    def _filters(nodes: Sequence[str], tags: Mapping[str, str]) -> int:
        size = 1
        if nodes:
            size += raw_size(node_filter_size(nodes))
        for tag, regex in tags.items():
            size += raw_size(11 + raw_size(byte_length(tag)) + raw_size(byte_length(regex)))
        return size


def byte_length(text: str) -> int:
    """Bytes of a name on the wire; names are arbitrary bytes, carried as surrogateescape."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogateescape"))


def raw_size(length: int) -> int:
    """Bytes of a raw of ``length`` bytes in the old msgpack specification, which has no 8-bit length."""
    if length < 32:
        return length + 1
    return length + 3 if length < 2**16 else length + 5


def node_filter_size(nodes: Sequence[str]) -> int:
    """Bytes of the blob that lists ``nodes``: its type byte, the array's head and the names."""
    return 1 + (1 if len(nodes) < 16 else 3) + sum(raw_size(byte_length(name)) for name in nodes)


def timeout_ns(timeout: float) -> int:
    """Seconds as the agent's integer nanoseconds."""
    return round(timeout * 1_000_000_000)


def query_timeout(members: int) -> float:
    """Seconds a query should stay open in a cluster of ``members``; the agent's own default grows without a bound."""
    if members < 100:
        return 5.0
    return 10.0 if members < 10_000 else 16.0


def check_names(
    names: Iterable[str], *, frame: QueryFrame, payload_size: int, limit: int = QUERY_SIZE_LIMIT
) -> tuple[NameProblem, ...]:
    """The names (``organization:node``) that a query with one name and this payload cannot carry, with the reason.

    To be called at start, so that a node that can never be rung is known before somebody waits for it.
    """
    return tuple(
        problem
        for name in names
        if (problem := _name_problem(name, frame=frame, payload_size=payload_size, limit=limit)) is not None
    )


def _name_problem(name: str, *, frame: QueryFrame, payload_size: int, limit: int) -> NameProblem | None:
    if not name:
        return NameProblem(name=name, fault=NameFault.EMPTY)
    if not name.isprintable():
        # Surrogates (bytes that are no UTF-8) are not printable either.
        return NameProblem(name=name, fault=NameFault.NOT_TEXT)
    organization, colon, node = name.partition(":")
    if not (organization and colon and node):
        return NameProblem(name=name, fault=NameFault.NO_ORGANIZATION)
    excess = frame.size(payload_size, [name]) - limit
    return NameProblem(name=name, fault=NameFault.TOO_LONG, excess=excess) if excess > 0 else None


def _uint(value: int) -> int:
    for size, bound in ((1, 2**7), (2, 2**8), (3, 2**16), (5, 2**32)):
        if value < bound:
            return size
    return 9
