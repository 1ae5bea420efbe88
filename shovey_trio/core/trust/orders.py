"""Orders: signed instructions to one node for one run (design: docs/architecture.md, "Trust").

``Order`` is the value; its bytes are made and read at the border (``rpc.convert``), signed and verified by
``core.trust.order_signing``. ``judge_order`` is the node's decision about an order whose signature is good.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from shovey_trio.core.jobs.command_input import NO_INPUT, CommandInput

NONCE_BYTES = 16
# The first bytes of a nonce that says by which time its order was made: of others, one in 65,536 looks like it.
_FRAMED = b"\xf7\x0e"
_FRAME_END = 8
# How far an agent's clock and the controller's may differ where they are compared without a measured offset.
MAX_CLOCK_SKEW = 900.0


def make_nonce(*, epoch: int, frame: int, random_bytes: Callable[[int], bytes]) -> bytes:
    """A nonce for an order that is made now.

    Args:
        epoch: of the controller's start.
        frame: how often it has followed a step of its clock since then.
        random_bytes: makes the rest of it, 8 bytes.
    """
    time_frame = (epoch % 2**32).to_bytes(4, "big") + (frame % 2**16).to_bytes(2, "big")
    return _FRAMED + time_frame + random_bytes(NONCE_BYTES - _FRAME_END)


def frame_of(nonce: bytes) -> bytes:
    """What is the same in all nonces whose orders' times can be compared; empty when a nonce says nothing of it."""
    return nonce[:_FRAME_END] if nonce.startswith(_FRAMED) and len(nonce) == NONCE_BYTES else b""


class OrderKind(StrEnum):
    """What the node is told to do. The last three are reserved for votes and refused."""

    START = "start"
    CANCEL = "cancel"
    RESERVE = "reserve"
    COMMIT = "commit"
    RELEASE = "release"


class RefusalReason(StrEnum):
    """Why a node refuses an order; a stable word that becomes the run's cause."""

    BAD_SIGNATURE = "bad_signature"
    UNKNOWN_KEY = "unknown_key"
    REVOKED_KEY = "revoked_key"
    KEY_NOT_VALID = "key_not_valid"
    MALFORMED = "malformed"
    UNSUPPORTED_FIELD = "unsupported_field"
    UNSUPPORTED_KIND = "unsupported_kind"
    OTHER_ORGANIZATION = "other_organization"
    OTHER_NODE = "other_node"
    OTHER_INSTANCE = "other_instance"
    EXPIRED = "expired"
    FUTURE_DATED = "future_dated"
    REPLAYED = "replayed"
    OLD_EPOCH = "old_epoch"
    NOT_WHITELISTED = "not_whitelisted"
    ARGUMENT_NOT_PERMITTED = "argument_not_permitted"
    ARGUMENT_MISMATCH = "argument_mismatch"
    ENV_NOT_PERMITTED = "env_not_permitted"
    STDIN_NOT_PERMITTED = "stdin_not_permitted"
    USER_NOT_PERMITTED = "user_not_permitted"
    BUSY = "busy"
    SPOOL_FULL = "spool_full"
    SPAWN_FAILED = "spawn_failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One instruction to one node. Times are unix seconds by the controller's clock, durations seconds."""

    organization: str
    node: str
    agent_instance: str
    job_id: str
    run_id: str
    kind: OrderKind
    command: str
    run_timeout: float
    kill_grace: float
    issued_at: float
    expires_at: float
    nonce: bytes
    epoch: int
    input: CommandInput = NO_INPUT


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedOrder:
    """An order's exact bytes with their signature; what travels and what the spool keeps.

    Attributes:
        sealed: the order's secrets, whose digest is among the signed bytes: they travel beside the order, so that the
            order can be kept and shown without them. Empty without secrets.
    """

    order: bytes
    signature: bytes
    key_id: str
    sealed: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeIdentity:
    """What a node knows of itself when it judges an order."""

    organization: str
    node: str
    agent_instance: str


def judge_order(
    order: Order, *, identity: NodeIdentity, controller_now: float, lowest_epoch: int, skew: float = 0.0
) -> RefusalReason | None:
    """Whether a node may act on an order that carries a good signature; None when it may.

    Nonces, the floor and the whitelist are judged after this, because they need the node's disk.

    Args:
        order: the parsed order.
        identity: who the node is.
        controller_now: the controller's time as the node knows it (on a stream: measured at attach).
        lowest_epoch: the highest epoch seen so far.
        skew: how wrong ``controller_now`` may be, in seconds.
    """
    if order.organization != identity.organization:
        return RefusalReason.OTHER_ORGANIZATION
    if order.node != identity.node:
        return RefusalReason.OTHER_NODE
    if order.agent_instance != identity.agent_instance:
        return RefusalReason.OTHER_INSTANCE
    if order.kind not in (OrderKind.START, OrderKind.CANCEL):
        return RefusalReason.UNSUPPORTED_KIND
    if len(order.nonce) != NONCE_BYTES or not order.run_id or order.run_timeout < 0 or order.kill_grace < 0:
        return RefusalReason.MALFORMED
    if order.epoch < lowest_epoch:
        return RefusalReason.OLD_EPOCH
    if order.expires_at + skew < controller_now:
        return RefusalReason.EXPIRED
    if order.issued_at - skew > controller_now + MAX_CLOCK_SKEW:
        return RefusalReason.FUTURE_DATED
    return None
