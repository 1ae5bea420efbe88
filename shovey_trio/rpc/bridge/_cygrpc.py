"""The part of grpcio below its public API that the server stands on, and whether this grpcio has it.

``grpc._cython.cygrpc`` is what grpcio's own synchronous server is made of. It is private and may change in any release,
so pyproject.toml pins the releases that the conformance suite (``tests/rpc/bridge``) has passed with, CI runs it with
both ends of that range (``tools/grpc_range.sh``), and no server starts before ``check_grpcio`` has found everything in
its place.
"""

from __future__ import annotations

import re
from typing import Final

import grpc
from grpc._cython import cygrpc

from shovey_trio.core.errors import ConfigurationInvalid

# As in pyproject.toml; a test compares.
OLDEST: Final = (1, 85, 1)
CEILING: Final = (1, 86)

NO_FLAGS: Final = 0
_PAST: Final = 0.0


def check_grpcio() -> None:
    """Check that the server works with the grpcio that is installed; some milliseconds.

    Raises:
        ConfigurationInvalid: it does not; the message says why and which releases do.
    """
    installed = f"grpcio {grpc.__version__}"
    version = tuple(int(part) for part in re.findall(r"\d+", grpc.__version__)[:3])
    if not OLDEST <= version < CEILING:
        raise ConfigurationInvalid(f"{installed} is installed; {_wanted()}")
    try:
        problem = _try_out()
    except Exception as error:  # noqa: BLE001  # whatever a private API has come to raise
        problem = repr(error)
    if problem is not None:
        raise ConfigurationInvalid(f"{installed} does not work as its release should ({problem}); {_wanted()}")


def _wanted() -> str:
    oldest, ceiling = (".".join(map(str, version)) for version in (OLDEST, CEILING))
    return f"the controller needs one from {oldest} up to, but not including, {ceiling}"


def _try_out() -> str | None:
    """Use everything that needs no connection, as the engine does; return what is wrong."""
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
