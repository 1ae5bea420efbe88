"""How an RPC ended, on both sides, and its form on the wire (``google.rpc.Status``).

The rich status travels in the trailing metadata ``grpc-status-details-bin``, as every gRPC implementation expects
(https://grpc.io/docs/guides/error/#richer-error-model).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from shovey_trio.core.errors import Code

DETAILS_KEY: Final = "grpc-status-details-bin"
# Peers refuse more than 8 KiB of metadata by default; what does not fit would turn any error into RESOURCE_EXHAUSTED.
_DETAILS_LIMIT: Final = 4096
_MESSAGE_LIMIT: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcStatus:
    """A failed RPC as the server reports it.

    Attributes:
        code: not ``Code.OK``.
        message: for people; cut at 1,024 characters on the wire.
        details: messages for programs, such as ``google.rpc.ErrorInfo``; left out if larger than 4 KiB together.
    """

    code: Code
    message: str
    details: Sequence[Message] = ()

    def __post_init__(self) -> None:
        if self.code is Code.OK:
            raise ValueError("OK is not an error status")


class AbortRpc(Exception):
    """Raised by a handler or an ``authorize`` hook to end its RPC with ``status``."""

    def __init__(self, status: RpcStatus) -> None:
        super().__init__(f"{status.code.name}: {status.message}")
        self.status = status


class RpcError(Exception):
    """An RPC ended with a status other than OK.

    Attributes:
        code: the status.
        message: the server's or grpc's text.
        reason: ``ErrorInfo.reason`` if the server sent one, else the name of the code.
        metadata: ``ErrorInfo.metadata``.
        details: all details as they came, packed.
    """

    def __init__(self, code: Code, message: str, details: Sequence[AnyMessage] = ()) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message
        self.details = tuple(details)
        self.reason = code.name
        self.metadata: Mapping[str, str] = MappingProxyType({})
        info = error_details_pb2.ErrorInfo()
        for detail in self.details:
            if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR) and _unpack(detail, info):
                self.reason = info.reason
                self.metadata = MappingProxyType(dict(info.metadata))
                break


class ListenError(Exception):
    """An address cannot be listened on: in use, not ours, or not permitted."""

    reason: Final = "LISTEN_FAILED"


def encode_details(status: RpcStatus) -> tuple[str, tuple[tuple[str, bytes], ...]]:
    """Return the message and the trailing metadata for ``status``."""
    message = status.message[:_MESSAGE_LIMIT]
    if not status.details:
        return message, ()
    wire = status_pb2.Status(code=status.code.value, message=message)
    for detail in status.details:
        wire.details.add().Pack(detail)
    encoded = wire.SerializeToString()
    return message, ((DETAILS_KEY, encoded),) if len(encoded) <= _DETAILS_LIMIT else ()


def decode_error(code: int, message: str | None, trailing_metadata: Iterable[tuple[str, str | bytes]]) -> RpcError:
    """Build the error from what grpc reports; details that do not parse are left out."""
    wire = status_pb2.Status()
    for key, value in trailing_metadata:
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                wire.ParseFromString(value)
            except DecodeError:
                wire.Clear()
    try:
        known = Code(code)
    except ValueError:
        known = Code.UNKNOWN
    return RpcError(known, message or "", wire.details)


def _unpack(detail: AnyMessage, into: Message) -> bool:
    try:
        return detail.Unpack(into)
    except DecodeError:
        return False
