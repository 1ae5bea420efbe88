"""An attached agent: the controller's end of its control stream (``nursery.ports.AgentLink``)."""

from __future__ import annotations

from typing import TypeAlias

import structlog
import trio

from shovey_trio.core.jobs.model import LinkMode
from shovey_trio.nursery.ports import (
    SendAskWhitelist,
    SendClock,
    SendDetachOk,
    SendFollow,
    SendForget,
    SendKeys,
    SendOrder,
    SendReportDurable,
    ToAgent,
)
from shovey_trio.rpc.bridge import ServerCall
from shovey_trio.rpc.convert import keys_message, signed_order_message, timestamp
from shovey_trio.v1 import agent_service_pb2 as pb

_log = structlog.get_logger(__name__)

# Messages waiting for one agent. An order is about 400 bytes: 4,096 × 400 = 1.6 MiB for one agent that has stopped
# reading, beside what its commands are given; it is cut off then, and gets everything again when it attaches the next
# time.
_OUTBOX = 4096


AttachCall: TypeAlias = ServerCall[pb.AttachRequest, pb.AttachResponse]


class AttachedAgent:
    """Messages for one agent, in order. There are thousands of these: no task, and no more than what is needed."""

    __slots__ = ("_call", "agent_instance", "mode", "node", "organization", "scope", "takes_clock")

    def __init__(
        self,
        call: AttachCall,
        *,
        organization: str,
        node: str,
        agent_instance: str,
        mode: LinkMode,
        takes_clock: bool = False,
    ) -> None:
        self._call = call
        self.takes_clock = takes_clock
        self.organization = organization
        self.node = node
        self.agent_instance = agent_instance
        self.mode = mode
        self.scope = trio.CancelScope()

    def send_nowait(self, message: ToAgent) -> None:
        """Queues a message; see ``nursery.ports.AgentLink``."""
        if isinstance(message, SendClock) and not self.takes_clock:
            self.close("the controller's clock was set: it measures it when it attaches anew")
        else:
            self.queue(_to_wire(message))

    def queue(self, message: pb.AttachResponse) -> None:
        if self._call.posted >= _OUTBOX:
            self.close("it has stopped reading")
        else:
            self._call.post(message)

    def close(self, reason: str) -> None:
        """Cuts the stream."""
        _log.info("agent.cut", node=self.node, reason=reason)
        self.scope.cancel(reason=reason)


def _to_wire(message: ToAgent) -> pb.AttachResponse:
    match message:
        case SendOrder(order=order):
            return pb.AttachResponse(order=signed_order_message(order))
        case SendReportDurable(run_id=run_id):
            return pb.AttachResponse(report_durable=pb.ReportDurable(run_id=run_id))
        case SendFollow(run_id=run_id, followed=followed):
            return pb.AttachResponse(follow=pb.FollowOutput(run_id=run_id, followed=followed))
        case SendForget(run_id=run_id):
            return pb.AttachResponse(forget=pb.ForgetRun(run_id=run_id))
        case SendKeys(keys=keys):
            return pb.AttachResponse(signing_keys=keys_message(keys))
        case SendClock(now=now):
            return pb.AttachResponse(clock=pb.ControllerClock(controller_time=timestamp(now)))
        case SendAskWhitelist(ask_id=ask_id, command=command, input=given):
            ask = pb.AskWhitelist(
                ask_id=ask_id,
                command=command,
                args=given.args,
                env=given.env,
                user=given.user,
                stdin_bytes=len(given.stdin),
            )
            return pb.AttachResponse(ask_whitelist=ask)
        case SendDetachOk():
            return pb.AttachResponse(detach_ok=pb.DetachOk())
