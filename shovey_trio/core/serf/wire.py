"""The vocabulary of serf's RPC protocol (IPC version 1): every word of it that we send or read, and nothing else.

Source: the recordings in ``tests/golden/serf-rpc.jsonl`` and the agent's source (``cmd/serf/command/agent/ipc.go``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from types import MappingProxyType
from typing import Final

IPC_VERSION: Final = 1
RPC_PORT: Final = 7373

#: Serf's own default for both: raw bytes of an encoded query, and of an encoded answer to one.
QUERY_SIZE_LIMIT: Final = 1024
#: Three queries of this size share one gossip packet of 1,400 bytes.
QUERY_SIZE_SHARED: Final = 463
#: Serf's default for a user event, before and after encoding.
USER_EVENT_SIZE_LIMIT: Final = 512

#: The query that rings a doorbell.
DOORBELL_QUERY: Final = "shovey-trio"
#: User event a controller sends at its start; the payload is its node name.
CONTROLLER_START_EVENT: Final = "shovey-trio-controller"
#: User event an agent sends at its start; the payload is its node name.
AGENT_START_EVENT: Final = "shovey-trio-agent"


class Command(StrEnum):
    """The commands of IPC version 1."""

    HANDSHAKE = "handshake"
    AUTH = "auth"
    EVENT = "event"
    FORCE_LEAVE = "force-leave"
    JOIN = "join"
    MEMBERS = "members"
    MEMBERS_FILTERED = "members-filtered"
    TAGS = "tags"
    STREAM = "stream"
    MONITOR = "monitor"
    STOP = "stop"
    LEAVE = "leave"
    QUERY = "query"
    RESPOND = "respond"
    STATS = "stats"
    GET_COORDINATE = "get-coordinate"
    INSTALL_KEY = "install-key"
    USE_KEY = "use-key"
    REMOVE_KEY = "remove-key"
    LIST_KEYS = "list-keys"


class Records(Enum):
    """What follows the reply of a command under the same Seq."""

    NONE = "none"
    EVENTS = "events"
    LOG = "log"
    QUERY = "query"


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandShape:
    """Which objects a command consists of: the stream does not say, so both sides must know.

    Attributes:
        sends_body: a body follows the request header. A body sent without need is read as the *next* header.
        reply_body: a body follows the reply header, also when the command failed (but see ``GATE_ERRORS``).
        records: what follows later.
    """

    sends_body: bool = True
    reply_body: bool = False
    records: Records = Records.NONE


_PLAIN = CommandShape()
_ANSWERED = CommandShape(reply_body=True)
_ASKED = CommandShape(sends_body=False, reply_body=True)

SHAPES: Final[Mapping[Command, CommandShape]] = MappingProxyType(
    {
        Command.HANDSHAKE: _PLAIN,
        Command.AUTH: _PLAIN,
        Command.EVENT: _PLAIN,
        Command.FORCE_LEAVE: _PLAIN,
        Command.JOIN: _ANSWERED,
        Command.MEMBERS: _ASKED,
        Command.MEMBERS_FILTERED: _ANSWERED,
        Command.TAGS: _PLAIN,
        Command.STREAM: CommandShape(records=Records.EVENTS),
        Command.MONITOR: CommandShape(records=Records.LOG),
        Command.STOP: _PLAIN,
        Command.LEAVE: CommandShape(sends_body=False),
        Command.QUERY: CommandShape(records=Records.QUERY),
        Command.RESPOND: _PLAIN,
        Command.STATS: _ASKED,
        Command.GET_COORDINATE: _ANSWERED,
        Command.INSTALL_KEY: _ANSWERED,
        Command.USE_KEY: _ANSWERED,
        Command.REMOVE_KEY: _ANSWERED,
        Command.LIST_KEYS: _ASKED,
    }
)

ERROR_HANDSHAKE_REQUIRED: Final = "Handshake required"
ERROR_AUTH_REQUIRED: Final = "Authentication required"
ERROR_AUTH_FAILED: Final = "Invalid authentication token"
ERROR_UNSUPPORTED: Final = "Unsupported command"

#: Answered before the command is looked at: no body follows, whatever the command.
GATE_ERRORS: Final = frozenset({ERROR_HANDSHAKE_REQUIRED, ERROR_AUTH_REQUIRED, ERROR_UNSUPPORTED})


class MemberStatus(StrEnum):
    """The agent's view of a member."""

    NONE = "none"
    ALIVE = "alive"
    LEAVING = "leaving"
    LEFT = "left"
    FAILED = "failed"


class MemberEventKind(StrEnum):
    """Why a stream tells of members."""

    JOIN = "member-join"
    LEAVE = "member-leave"
    FAILED = "member-failed"
    UPDATE = "member-update"
    REAP = "member-reap"


#: Filters of the ``stream`` command.
STREAM_MEMBERS: Final = ",".join(MemberEventKind)
STREAM_DOORBELLS: Final = f"query:{DOORBELL_QUERY}"
STREAM_USER_EVENTS: Final = "user"
