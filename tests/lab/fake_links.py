"""A control stream that ends in a fake agent of the same process."""

from __future__ import annotations

import trio

from shovey_trio.core.jobs.model import LinkMode
from shovey_trio.nursery.ports import ToAgent

# As the real link's outbox: an agent that has stopped reading is cut off then.
_OUTBOX = 4096


class FakeLink:
    """See ``nursery.ports.AgentLink``. ``received`` is the agent's end; closing the link cancels ``scope``."""

    def __init__(self, *, organization: str, node: str, agent_instance: str, mode: LinkMode) -> None:
        self.organization = organization
        self.node = node
        self.agent_instance = agent_instance
        self.mode = mode
        self.scope = trio.CancelScope()
        self.closed_because = ""
        self._send, self.received = trio.open_memory_channel[ToAgent](_OUTBOX)

    def send_nowait(self, message: ToAgent) -> None:
        if self.closed_because:
            return
        try:
            self._send.send_nowait(message)
        except trio.WouldBlock:
            self.close("it has stopped reading")

    def close(self, reason: str) -> None:
        self.closed_because = self.closed_because or reason
        self.scope.cancel(reason=reason)
