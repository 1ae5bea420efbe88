"""Questions to attached agents about their whitelists, and their way back to whoever asked."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

import trio

from shovey_trio.core.jobs.command_input import CommandInput
from shovey_trio.nursery.ports import AgentLink, SendAskWhitelist


@dataclass(frozen=True, slots=True, kw_only=True)
class WhitelistAnswer:
    """What a node says; ``reason`` is the word an order would be refused with."""

    permitted: bool
    reason: str = ""
    detail: str = ""


class WhitelistAsks:
    """Questions that are open; one entry per caller that waits."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[AgentLink, trio.MemorySendChannel[WhitelistAnswer]]] = {}

    async def ask(self, link: AgentLink, command: str, given: CommandInput) -> WhitelistAnswer:
        """Asks a node. Waits for as long as the caller does; cancelled, a late answer is dropped."""
        ask_id = uuid.uuid4().hex
        # One question has one answer.
        send, receive = trio.open_memory_channel[WhitelistAnswer](1)
        self._open[ask_id] = (link, send)
        try:
            link.send_nowait(SendAskWhitelist(ask_id=ask_id, command=command, input=given))
            return await receive.receive()
        finally:
            del self._open[ask_id]

    def answered(self, link: AgentLink, ask_id: str, answer: WhitelistAnswer) -> None:
        """Takes an answer; one to a question that was not put on this link is dropped."""
        asked, send = self._open.get(ask_id, (None, None))
        if send is not None and asked is link:
            try:
                send.send_nowait(answer)
            except trio.WouldBlock:
                return  # it has answered before; the first word counts
