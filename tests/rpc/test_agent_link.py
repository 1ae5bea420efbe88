"""The controller's end of an agent's control stream."""

from __future__ import annotations

from typing import Any, cast

import pytest

from shovey_trio.core.jobs.model import LinkMode
from shovey_trio.nursery.ports import SendClock
from shovey_trio.rpc.convert import seconds
from shovey_trio.rpc.services.agent_link import AttachCall, AttachedAgent
from shovey_trio.v1 import agent_service_pb2 as pb


class Outbox:
    """What of a call the link uses."""

    posted = 0

    def __init__(self) -> None:
        self.messages: list[Any] = []

    def post(self, message: pb.AttachResponse) -> None:
        self.messages.append(message)


@pytest.mark.parametrize("takes_clock", [True, False], ids=["new", "old"])
async def test_an_agent_that_does_not_know_the_message_attaches_anew_when_the_clock_is_set(takes_clock: bool) -> None:
    outbox = Outbox()
    link = AttachedAgent(
        cast(AttachCall, outbox),
        organization="default",
        node="web-1",
        agent_instance="instance",
        mode=LinkMode.ATTACHED,
        takes_clock=takes_clock,
    )
    link.send_nowait(SendClock(now=1_800_000_000.0))
    assert [seconds(message.clock.controller_time) for message in outbox.messages] == [1_800_000_000.0] * takes_clock
    assert link.scope.cancel_called is not takes_clock
