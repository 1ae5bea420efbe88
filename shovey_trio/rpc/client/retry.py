"""When a client tries again: pauses that grow and are spread, and where it gives up."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeVar

import trio
from google.protobuf.message import Message

from shovey_trio.core.errors import Code, Unreachable
from shovey_trio.rpc.bridge import Channel, Method, RpcError

Req = TypeVar("Req", bound=Message)
Res = TypeVar("Res", bound=Message)

_GROWTH: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How patient a client is; all values in seconds.

    Attributes:
        first_pause: before the second attempt; each further pause is twice as long.
        longest_pause: where they stop growing.
        attempt_deadline: how long one attempt of a call may take before it counts as unanswered.
        call_patience: how long a call is tried again after its first failure.
        stream_patience: the same for a stream that was open, which has more to lose; longer than a restart takes.
    """

    first_pause: float = 0.2
    longest_pause: float = 2.0
    attempt_deadline: float = 15.0
    call_patience: float = 5.0
    stream_patience: float = 300.0

    def pauses(self) -> Iterator[float]:
        """The pauses between attempts, without end; each between half and all of its nominal length."""
        pause = self.first_pause
        while True:
            yield pause * random.uniform(0.5, 1.0)  # noqa: S311  # spreads clients, keeps no secret
            pause = min(pause * _GROWTH, self.longest_pause)


def is_lost_contact(error: RpcError) -> bool:
    """Whether trying the same again may help: the server was not there, was leaving, or did not answer in time.

    CANCELLED is what a server that stops makes of the calls that are still open when its grace is over; our own cancel
    of a call is never an ``RpcError``.
    """
    return error.code in {Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.CANCELLED}


def unreachable(error: RpcError, target: str) -> RpcError | Unreachable:
    """``error``, or ``Unreachable`` when it did not come from the server but from the way there."""
    if is_lost_contact(error) and error.reason == error.code.name:
        return Unreachable(f"cannot reach the controller at {target}: {_cause(error.message)}", target=target)
    return error


async def call_with_retry(
    channel: Channel, method: Method[Req, Res], request: Req, *, policy: RetryPolicy, target: str
) -> Res:
    """Calls a method whose repetition does no harm, again and again while the server is away.

    Cancellation: cancels the attempt in progress; whether the server acted on it is unknown.

    Raises:
        Unreachable: no attempt was answered for as long as ``policy`` allows.
        RpcError: the server's own answer; DRAINING and the like only after the same patience.
    """
    failing_since = math.inf
    for pause in policy.pauses():
        try:
            with trio.move_on_after(policy.attempt_deadline):
                return await channel.unary(method, request)
            failure: RpcError = RpcError(Code.DEADLINE_EXCEEDED, f"no answer within {policy.attempt_deadline:g} s")
        except RpcError as error:
            if not is_lost_contact(error):
                raise
            failure = error
        failing_since = min(failing_since, trio.current_time())
        if trio.current_time() + pause - failing_since > policy.call_patience:
            break
        await trio.sleep(pause)
    raise unreachable(failure, target) from failure


def _cause(message: str) -> str:
    """What is at the end of grpc's chain of explanations, for instance ``Connection refused (111)``."""
    for marker in ("last error: ", "remote host: ", "connect: "):
        message = message.rpartition(marker)[2] or message
    if "handshake failed" in message.lower():
        return f"the TLS handshake failed ({message.rpartition(':')[2].strip() or message})"
    return message.strip() or "no connection"
