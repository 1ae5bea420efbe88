"""The part of grpcio below its public API that the native engine stands on, and whether this grpcio has it.

``grpc._cython.cygrpc`` is what grpcio's own synchronous server is made of. It is private: it may change in any release,
so nothing but the native engine uses it, and only after ``why_not_native`` has found everything where it is expected.
The conformance suite (``tests/rpc/bridge``) is what really tells whether a new grpcio can be used.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import grpc
from grpc._cython import cygrpc

# Later releases of the same major version are tried, and refused if they do not answer as these do.
OLDEST: Final = (1, 85)
CEILING: Final = (2, 0)

NO_FLAGS: Final = 0
_PAST: Final = 0.0


@lru_cache(maxsize=1)
def why_not_native() -> str | None:
    """Return why the native engine cannot be used with the grpcio that is installed; ``None`` if it can."""
    version = tuple(int(part) for part in grpc.__version__.split(".")[:2])
    if not OLDEST <= version < CEILING:
        return f"grpcio {grpc.__version__} is outside of the range it was made for"
    try:
        return _try_out()
    except Exception as error:  # noqa: BLE001  # whatever a private API has come to raise
        return f"grpcio {grpc.__version__} is made in another way: {error!r}"


def _try_out() -> str | None:
    """Use everything that needs no connection, as the engine does."""
    kinds = cygrpc.CompletionType
    operations = (
        cygrpc.ReceiveCloseOnServerOperation(NO_FLAGS),
        cygrpc.ReceiveMessageOperation(NO_FLAGS),
        cygrpc.SendInitialMetadataOperation((), NO_FLAGS),
        cygrpc.SendMessageOperation(b"", NO_FLAGS),
        cygrpc.SendStatusFromServerOperation((), 0, b"", NO_FLAGS),
    )
    wanted = {
        operations[0]: ("cancelled",),
        operations[1]: ("message",),
        cygrpc.RequestCallEvent: ("call", "call_details", "invocation_metadata", "success", "tag"),
        cygrpc.BatchOperationEvent: ("batch_operations", "success", "tag"),
        cygrpc.CallDetails: ("deadline", "method"),
        cygrpc.Call: ("start_server_batch", "peer"),
        cygrpc: ("auth_context",),
        cygrpc.Server: ("request_call", "request_registered_call"),
    }
    for owner, names in wanted.items():
        for name in names:
            getattr(owner, name)
    queue = cygrpc.CompletionQueue()
    server = cygrpc.Server((), False)
    server.register_completion_queue(queue)
    server.register_method("/a.B/C")
    server.start()
    notified: list[bool] = []
    server.shutdown(queue, notified.append)
    event = queue.poll(None)
    if event.completion_type != kinds.operation_complete:
        return f"its completion queue answered {event.completion_type} to a shutdown"
    event.tag(True)
    server.destroy()
    if queue.poll(_PAST).completion_type != kinds.queue_timeout:
        return "its completion queue has events that nobody caused"
    queue.shutdown()
    if queue.poll(None).completion_type != kinds.queue_shutdown or notified != [True]:
        return "its completion queue does not say when it is shut down"
    return None
