"""Messages as plain values for ``-o json``, ``jsonl`` and ``yaml``: a stable shape, documented in docs/cli.md.

Field names are those of the .proto files. Every field is there: what is absent is null. Enums are their short names in
lower case (``succeeded``), times RFC 3339 in UTC, durations seconds, 64-bit counts numbers. Bytes are base64, as in
protobuf's own JSON; an output chunk carries its readable text beside them.
"""

from __future__ import annotations

import base64
import datetime
from typing import Any, Final

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from shovey_trio.v1 import job_pb2

Plain = dict[str, Any]

_UNSPECIFIED: Final = "UNSPECIFIED"


def plain_message(message: Message) -> Plain:
    """The message's fields by name."""
    result: Plain = {}
    for field in message.DESCRIPTOR.fields:
        chosen = field.containing_oneof
        if chosen is not None and not field.has_presence:
            continue
        if chosen is not None and len(chosen.fields) > 1 and message.WhichOneof(chosen.name) != field.name:
            continue  # an event is the one that happened, not a list of those that did not
        result[field.name] = _field(message, field)
    if isinstance(message, job_pb2.Job):
        result["run_counts"] = {
            enum_word(job_pb2.RunState.DESCRIPTOR, count.state): count.count for count in message.run_counts
        }
    elif isinstance(message, job_pb2.OutputChunk):
        result["text"] = message.data.decode(errors="replace")
    return result


def enum_word(enum: Any, number: int) -> str | None:
    """The short lower-case name of an enum's member; None for unspecified, the number for one from the future."""
    descriptor: EnumDescriptor = enum
    value = descriptor.values_by_number.get(number)
    if value is None:
        return str(number)
    prefix = descriptor.values_by_number[0].name.removesuffix(_UNSPECIFIED)
    word = value.name.removeprefix(prefix)
    return None if word == _UNSPECIFIED else word.lower()


def rfc3339(at: Timestamp) -> str:
    """A time as RFC 3339 in UTC, to the microsecond."""
    return at.ToDatetime(tzinfo=datetime.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _field(message: Message, field: Any) -> Any:
    value = getattr(message, field.name)
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        return {key: value[key] for key in sorted(value)}
    if field.is_repeated:
        return [_value(field, item) for item in value]
    if field.has_presence and not message.HasField(field.name):
        return None
    return _value(field, value)


def _value(field: Any, value: Any) -> Any:
    match value:
        case Timestamp():
            return rfc3339(value)
        case Duration():
            return value.seconds + value.nanos / 1e9
        case Message():
            return plain_message(value)
        case bytes():
            return base64.b64encode(value).decode("ascii")
        case int() if field.enum_type is not None:
            return enum_word(field.enum_type, value)
        case _:
            return value
