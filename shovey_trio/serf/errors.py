"""What can go wrong between us and a serf agent: one class per decision of the caller."""

from __future__ import annotations

from shovey_trio.core.errors import Code, Exit, SerfUnavailable, ShoveyError


class SerfConnectionLost(SerfUnavailable):
    """No connection, or it ended before the answer. What was asked may have happened; ask again after the reconnect."""

    reason = "SERF_CONNECTION_LOST"


class SerfStalled(SerfConnectionLost):
    """The agent accepts the connection and does not answer; it was given up."""

    reason = "SERF_STALLED"


class SerfConsumerTooSlow(SerfConnectionLost):
    """We did not take the agent's events as fast as they came; the connection was given up rather than lose one."""

    reason = "SERF_CONSUMER_TOO_SLOW"


class SerfAuthFailed(SerfUnavailable):
    """The agent wants another RPC key than the configured one."""

    reason, code, http, exit = "SERF_AUTH_FAILED", Code.UNAVAILABLE, 503, Exit.DENIED


class SerfQueueFull(SerfUnavailable):
    """Too many queries wait for their turn; ``retry_after_s`` says when to come back."""

    reason, code, http, exit = "SERF_QUEUE_FULL", Code.RESOURCE_EXHAUSTED, 503, Exit.BUSY


class SerfRefused(ShoveyError):
    """The agent understood the command and refused it; ``error`` holds its words. Asking again will not help."""

    reason, code, http, exit = "SERF_REFUSED", Code.FAILED_PRECONDITION, 502, Exit.INTERNAL
