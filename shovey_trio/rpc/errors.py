"""Errors at the gRPC border: ours to a rich status on the server, a status to ours on the client."""

from __future__ import annotations

from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2

from shovey_trio.core.errors import ShoveyError
from shovey_trio.rpc.bridge import RpcStatus

DOMAIN: Final = "shovey-trio"


def status_of(error: Exception) -> RpcStatus | None:
    """The rich status of an error of ours; None for anything else, which becomes INTERNAL with an incident id.

    ``ErrorInfo`` carries reason and details; ``RetryInfo`` says when to come back where the error does.
    """
    if not isinstance(error, ShoveyError):
        return None
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.details)
    details: list[Message] = [info]
    retry_after = error.details.get("retry_after_s")
    if retry_after is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=Duration(seconds=int(retry_after))))
    if "field" in error.details:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.details["field"], description=error.message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    return RpcStatus(code=error.code, message=error.message, details=details)
